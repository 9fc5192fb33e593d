"""provenance.json of a version: who can be asked what every file was made from, in a form that supply-chain tools read.

An in-toto Statement v1 (https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md) whose predicate is
SLSA Provenance v1 (https://slsa.dev/spec/v1.0/provenance). It is not signed, and claims no SLSA level: it says what
went in, and whoever wants to vouch for that signs the file as it is.

- `subject`: every other file of the version.
- `externalParameters`: the recipe, which decides the content; `internalParameters`: its digest, and the counts.
- `resolvedDependencies`: what went in, by name: "scans", "base", "decoder", "adapter/<label>" or "adapter",
  "controlnet", "harmonizer", "critic", "judge/<name>", "extractor". Their `sha256` is what the `…_digest` columns of
  the rows hold. Software follows as "package/<name>", by package URL and without a digest.
- There is no time and no version number in it: same facts, same bytes. The version's manifest has both.
"""

import json
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from tasks.documents.facts import Facts, Ingredient, PublishedFile

FILE = "provenance.json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:sonoforge:build-dataset:1"
BUILDER = "urn:sonoforge:builder"

_BUILT_BY = ("sonoforge", "python")


def render(facts: Facts, files: Sequence[PublishedFile]) -> str:
    """The statement as JSON, about all `files` but itself.

    Raises:
        ValueError: no files, or two ingredients of one name.
    """
    subjects = sorted((file for file in files if file.path != FILE), key=lambda file: file.path)
    if not subjects:
        raise ValueError("a statement is about files: there are none")
    names = [item.name for item in facts.ingredients]
    if len(set(names)) < len(names):
        raise ValueError(f"the names of ingredients are not unique: {', '.join(sorted(names))}")
    others = {name: version for name, version in facts.packages.items() if name not in _BUILT_BY}
    packages = [_package(name, version) for name, version in sorted(others.items())]
    content = {
        "_type": STATEMENT,
        "subject": [{"name": file.path, "digest": {"sha256": file.sha256}} for file in subjects],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"recipe": dict(facts.recipe)},
                "internalParameters": {
                    "recipe_digest": facts.recipe_digest,
                    "planned": facts.outcome.planned,
                    "kept": facts.outcome.kept,
                    "licence": facts.terms.name,
                },
                "resolvedDependencies": [*(_dependency(item) for item in facts.ingredients), *packages],
            },
            "runDetails": {
                "builder": {
                    "id": BUILDER,
                    "version": {name: facts.packages[name] for name in _BUILT_BY if name in facts.packages},
                }
            },
        },
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _dependency(item: Ingredient) -> dict[str, object]:
    described: dict[str, object] = {"name": item.name, "digest": {"sha256": item.sha256}}
    return described if item.uri is None else {**described, "uri": item.uri}


def _package(name: str, version: str) -> Mapping[str, object]:
    return {"name": f"package/{name}", "uri": f"pkg:pypi/{name.lower()}@{quote(version, safe='')}"}
