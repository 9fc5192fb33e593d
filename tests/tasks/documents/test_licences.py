import itertools

import pytest

from tasks import sources
from tasks.documents.licences import LICENCES, LicenceConflictError, Licensed, combine, find


def _of(*licences: str) -> list[Licensed]:
    return [Licensed(name=f"source {index}", licence=licence) for index, licence in enumerate(licences)]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("CC BY 4.0", "CC BY 4.0"),
        ("cc-by-4.0", "CC BY 4.0"),
        ("Creative Commons Attribution 4.0 International", "CC BY 4.0"),
        ("https://creativecommons.org/licenses/by/4.0/", "CC BY 4.0"),
        ("Creative Commons Attribution-NonCommercial-ShareAlike 3.0 Unported", "CC BY-NC-SA 3.0"),
        ("CC BY-NC-ND 4.0", "CC BY-NC-ND 4.0"),
        ("CC0 1.0 Universal", "CC0 1.0"),
        ("cc0-1.0", "CC0 1.0"),
        ("Apache License, Version 2.0", "Apache-2.0"),
        ("Apache License", "Apache-2.0"),  # the first line of its text
        ("MIT License", "MIT"),
        ("creativeml-openrail-m", "CreativeML OpenRAIL-M"),
        ("CreativeML Open RAIL-M", "CreativeML OpenRAIL-M"),  # the first line of its text
        ("openrail++", "CreativeML OpenRAIL++-M"),
    ],
)
def test_a_licence_is_found_however_it_is_spelled(said: str, meant: str) -> None:
    assert find(said).name == meant
    assert find(said).terms.stated


def test_every_licence_of_the_table_is_found_by_its_name_spdx_and_address() -> None:
    for licence in LICENCES:
        for text in (licence.name, licence.spdx, licence.url):
            assert text is None or find(text) == licence


def test_every_source_states_a_licence_that_the_table_knows() -> None:
    for source in sources.SOURCES.values():
        found = find(source.LICENCE)
        assert found.terms.stated or found.name == source.LICENCE
        assert combine(_of(source.LICENCE, "Apache-2.0"))


def test_a_cc_licence_without_a_version_has_the_terms_of_all_versions_and_no_spdx_name() -> None:
    found = find("CC BY-NC-SA")
    assert found.terms == find("CC BY-NC-SA 4.0").terms
    assert (found.name, found.spdx) == ("CC BY-NC-SA", None)


def test_equal_licences_combine_to_themselves() -> None:
    combined = combine(_of("Apache-2.0", "apache-2.0"))
    assert (combined.name, combined.spdx, combined.hub, combined.warnings) == (
        "Apache-2.0",
        "Apache-2.0",
        ["apache-2.0"],
        [],
    )


@pytest.mark.parametrize(
    ("one", "other", "name"),
    [
        ("CC BY 4.0", "Apache-2.0", "CC BY 4.0"),
        ("CC0 1.0", "MIT", "MIT"),
        ("CC BY 4.0", "CC BY-NC 4.0", "CC BY-NC 4.0"),
        ("CC BY-NC 4.0", "CC BY-NC-SA 4.0", "CC BY-NC-SA 4.0"),
        ("CC BY-SA 3.0", "CC BY-SA 4.0", "CC BY-SA 4.0"),
        ("CC BY 4.0", "CC BY 3.0", "CC BY 4.0"),
        ("CC BY 4.0", "creativeml-openrail-m", "CC BY 4.0 AND CreativeML OpenRAIL-M"),
        ("CC BY 4.0", "whatever", "CC BY 4.0 AND other: whatever"),
    ],
)
def test_the_strictest_terms_win(one: str, other: str, name: str) -> None:
    combined = combine(_of(one, other))
    assert combined.name == name
    for term in ("attribution", "share_alike", "non_commercial", "use_restrictions"):
        asked = [getattr(find(licence).terms, term) for licence in (one, other)]
        assert getattr(combined.terms, term) == any(asked)


def test_several_licences_that_hold_at_once_are_one_spdx_expression() -> None:
    assert combine(_of("CC BY 4.0", "creativeml-openrail-m")).spdx == "CC-BY-4.0 AND LicenseRef-CreativeML-OpenRAIL-M"


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        ("CC BY-SA 4.0", "CC BY-NC-SA 4.0", "and so does"),
        ("CC BY-SA 4.0", "CC BY-NC 4.0", "no commercial use"),
        ("CC BY-SA 4.0", "CreativeML OpenRAIL-M", "restrictions of use"),
        ("CC BY-NC-SA 4.0", "CreativeML OpenRAIL-M", "restrictions of use"),
        ("CC BY-SA 4.0", "for research", "no commercial use"),
    ],
)
def test_a_conflict_names_both_sources_why_and_what_to_do_whichever_comes_first(one: str, other: str, why: str) -> None:
    for pair in ((one, other), (other, one)):
        with pytest.raises(LicenceConflictError) as caught:
            combine(_of("MIT", *pair))
        text = str(caught.value)
        assert f"source 1 ({pair[0]}) and source 2 ({pair[1]}) cannot go into one dataset" in text
        assert why in text
        assert "leave one of the two out" in text
        assert {caught.value.one, caught.value.other} == {f"source 1 ({pair[0]})", f"source 2 ({pair[1]})"}


@pytest.mark.parametrize(
    ("licence", "why"),
    [
        ("CC BY-ND 4.0", "no derivatives"),
        ("CC BY-NC-ND 3.0", "no derivatives"),
        ("signed agreement", "forbids passing it on"),
        ("UDIAT: on signed agreement only", "forbids passing it on"),
        ("may not be redistributed", "forbids passing it on"),
    ],
)
def test_what_forbids_it_by_itself_is_refused_beside_anything(licence: str, why: str) -> None:
    with pytest.raises(LicenceConflictError, match=why) as caught:
        combine(_of("CC0 1.0", licence))
    assert (caught.value.one, caught.value.other) == (f"source 1 ({licence})", "")


@pytest.mark.parametrize("licence", ["as stated by the owner", "not stated", "", "Hospital X, ask Jane"])
def test_an_unknown_licence_goes_through_as_other_with_a_warning_that_names_the_source(licence: str) -> None:
    combined = combine(_of(licence))
    assert combined.name.startswith("other: ")
    assert combined.spdx is None
    assert combined.hub == ["other"]
    assert not combined.terms.stated
    assert len(combined.warnings) == 1
    assert "source 0" in combined.warnings[0]


def test_who_asks_to_be_named_is_named_even_where_a_stricter_licence_wins() -> None:
    scans = Licensed(name="scans of x", licence="CC BY 4.0", attribution="Doe J, 2020")
    combined = combine([scans, Licensed(name="base y", licence="CC BY-NC-SA 4.0", attribution="Roe R, 2021")])
    assert combined.attributions == ["scans of x: CC BY 4.0. Doe J, 2020", "base y: CC BY-NC-SA 4.0. Roe R, 2021"]


def test_no_combination_loses_a_term_and_none_depends_on_the_order() -> None:
    for pair in itertools.product(LICENCES, repeat=2):
        results = []
        for ordered in (pair, pair[::-1]):
            try:
                results.append(combine(_of(*(licence.name for licence in ordered))))
            except LicenceConflictError:
                results.append(None)
        one, other = results
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert one.terms == other.terms
            held = [find(name.removeprefix("other: ")).terms for name in one.names]
            for term in ("share_alike", "non_commercial", "use_restrictions"):
                asked = any(getattr(licence.terms, term) for licence in pair)
                assert getattr(one.terms, term) == asked == any(getattr(terms, term) for terms in held)


def test_nothing_has_no_terms() -> None:
    with pytest.raises(ValueError, match="give its sources"):
        combine([])
