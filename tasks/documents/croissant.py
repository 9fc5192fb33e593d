"""croissant.json of a version: what lies where, column by column, as JSON-LD that dataset tools read.

Croissant 1.1 (http://mlcommons.org/croissant/1.1) with its Responsible AI vocabulary 1.0
(http://mlcommons.org/croissant/RAI/1.0) and, as 1.1 recommends, PROV-O (https://www.w3.org/TR/prov-o/) for what the
data descends from. `rai:hasSyntheticData` is younger than RAI 1.0; readers that do not know it pass over it.

Same facts, same bytes: the file is part of what a version's digest covers, and a version has its number and its time
only once its content is fixed. So `version` and `datePublished`, which Croissant asks for, are not in here but in the
version's manifest (`version.json` of a pulled folder); and there is no `creator`, because nobody said who built it.
mlcroissant reports the first two as recommended and missing, and reads the data all the same.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from storage.records import IMAGE, SOURCE_SCHEMA, SPLITS, sample_schema
from tasks.documents.columns import meaning
from tasks.documents.facts import Facts, PublishedFile
from tasks.documents.licences import LICENCES
from tasks.documents.routes import ANNOTATED, COLLECTED, route

CONFORMS_TO = ("http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0")
PARQUET = "application/x-parquet"  # the one name that mlcroissant reads

_DATA = "data-files"
_TYPES = {
    pa.string(): "sc:Text",
    pa.int32(): "cr:Int32",
    pa.int64(): "cr:Int64",
    pa.float32(): "cr:Float32",
    pa.float64(): "cr:Float64",
    pa.bool_(): "sc:Boolean",
}
_SPLIT_URLS = {"train": "cr:TrainingSplit", "val": "cr:ValidationSplit", "test": "cr:TestSplit"}
_CONTEXT: dict[str, object] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "prov": "http://www.w3.org/ns/prov#",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The context that Croissant 1.1 recommends, and `prov`."""


def render(facts: Facts, files: Sequence[PublishedFile]) -> str:
    """The document as JSON; `files` are those of the version, in any order."""
    content = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": facts.dataset,
        "description": facts.description or f"Synthetic ultrasound dataset {facts.dataset}.",
        "conformsTo": list(CONFORMS_TO),
        "url": "README.md",
        "license": [_licence(name) for name in facts.terms.names],
        "citeAs": cite_as(facts),
        "citation": list(facts.sources),
        "keywords": ["medical", "ultrasound", "synthetic", "sonoforge", *facts.tally.by_label()],
        "isLiveDataset": False,
        **_responsible(facts),
        **_descent(facts),
        "distribution": _distribution(files),
        "recordSet": _record_sets(facts, {file.path for file in files}),
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def cite_as(facts: Facts) -> str:
    """BibTeX of the dataset itself; who uses it cites its sources too."""
    made_by = f"sonoforge {facts.packages['sonoforge']}" if "sonoforge" in facts.packages else "sonoforge"
    return (
        f"@misc{{{facts.dataset}, title = {{{facts.dataset}: synthetic ultrasound}}, "
        f"note = {{made with {made_by}, recipe {facts.recipe_digest[:12]}}}}}"
    )


def _licence(name: str) -> object:
    """The address of a licence; a work with a name where it has none."""
    for licence in LICENCES:
        if licence.name == name and licence.url is not None:
            return licence.url
    return {"@type": "sc:CreativeWork", "name": name}


def _distribution(files: Sequence[PublishedFile]) -> list[dict[str, object]]:
    """Parquet files: a pulled folder holds them all, and not the other forms, which are made on the way."""
    listed: list[dict[str, object]] = [
        {
            "@type": "cr:FileObject",
            "@id": file.path,
            "name": file.path,
            "contentUrl": file.path,
            "contentSize": f"{file.bytes} B",
            "encodingFormat": PARQUET,
            "sha256": file.sha256,
        }
        for file in sorted(files, key=lambda file: file.path)
        if file.path.endswith(".parquet")
    ]
    listed.append(
        {
            "@type": "cr:FileSet",
            "@id": _DATA,
            "name": _DATA,
            "description": "Kept samples with their pixels, one or more files a split.",
            "encodingFormat": PARQUET,
            "includes": "data/*.parquet",
        }
    )
    return listed


def _record_sets(facts: Facts, paths: set[str]) -> list[dict[str, object]]:
    schema = sample_schema(list(facts.score_names))
    thin = pa.schema([field for field in schema if field.type != IMAGE])
    whole: dict[str, object] = {"fileSet": {"@id": _DATA}}
    sets = [_splits(), _record_set("samples", "Kept samples: pixels and all that is known of them.", schema, whole)]
    for name, text, fields in (
        ("metadata", "Kept samples without pixels.", thin),
        ("ledger", "All planned samples without pixels: kept, rejected and failed, with reasons.", thin),
        ("sources", "The real or simulated scans that samples descend from, without pixels.", SOURCE_SCHEMA),
    ):
        if f"{name}.parquet" in paths:
            sets.append(_record_set(name, text, fields, {"fileObject": {"@id": f"{name}.parquet"}}))
    return sets


def _splits() -> dict[str, object]:
    return {
        "@type": "cr:RecordSet",
        "@id": "splits",
        "name": "splits",
        "description": "By group: what descends from one patient, exam or near-duplicate cluster is in one split.",
        "dataType": "cr:Split",
        "key": {"@id": "splits/name"},
        "field": [
            {"@type": "cr:Field", "@id": "splits/name", "name": "name", "dataType": "sc:Text"},
            {"@type": "cr:Field", "@id": "splits/url", "name": "url", "dataType": ["sc:URL", "cr:Split"]},
        ],
        "data": [{"splits/name": split, "splits/url": _SPLIT_URLS[split]} for split in SPLITS],
    }


def _record_set(name: str, description: str, schema: pa.Schema, source: Mapping[str, object]) -> dict[str, object]:
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": description,
        "key": {"@id": f"{name}/id"},
        "field": [_field(name, field, source) for field in schema],
    }


def _field(record_set: str, field: pa.Field, source: Mapping[str, object]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"{record_set}/{field.name}",
        "name": field.name,
        "description": meaning(field.name),
        "dataType": _type(field),
        "source": {**source, "extract": {"column": field.name}},
    }
    if field.type == IMAGE:
        described["source"]["transform"] = {"jsonPath": "bytes"}
    if pa.types.is_list(field.type):
        described |= {"isArray": True, "arrayShape": "-1"}
    if field.name == "split":
        described["references"] = {"field": {"@id": "splits/name"}}
    return described


def _type(field: pa.Field) -> object:
    if field.type == IMAGE:
        return ["cr:SegmentationMask", "sc:ImageObject"] if field.name == "mask" else "sc:ImageObject"
    kind = _TYPES[field.type.value_type if pa.types.is_list(field.type) else field.type]
    return [kind, "cr:Label"] if field.name == "label" else kind


def _responsible(facts: Facts) -> dict[str, object]:
    made, backgrounds = route(facts.recipe), facts.tally.backgrounds
    patients = sum(count for kind, count in backgrounds.items() if kind != "simulated")
    listed = ", ".join(f"{count} {kind}" for kind, count in backgrounds.items()) or "none"
    drawn = COLLECTED[made] + (f" (of the kept samples: {listed})" if made == "lesion" else "")
    private, taught = "None: no scan of a patient was used.", made != "lesion" and not _simulated(facts)
    if taught:
        private = "No picture is a scan, but the model that drew them learned from scans of patients: sources.parquet."
    elif patients:
        private = f"{patients} of {facts.tally.kept} pictures descend from scans of patients, named in sources.parquet."
    return {
        "rai:dataCollection": (
            f"Nothing was acquired for this dataset. {drawn}; judges scored each picture, and those that missed a "
            "limit are in ledger.parquet."
        ),
        "rai:dataCollectionType": ["Software Collection", *(["Secondary Data analysis"] if patients or taught else [])],
        "rai:dataCollectionRawData": "; ".join(facts.sources),
        "rai:dataCollectionMissingData": "A null says that a value does not apply or is not known; none is filled in.",
        "rai:dataPreprocessingProtocol": [
            "Scans were read, screened for defects, marks and near duplicates, fitted to one size, and split by group.",
            "Pictures are 8-bit grey, masks 1-bit, of the same size; both are lossless PNG.",
        ],
        "rai:dataAnnotationProtocol": f"Nobody annotated the synthetic pictures: {ANNOTATED[made]}.",
        "rai:annotationsPerItem": f"0 by people; {'' if made == 'prompt' else '1 mask and '}1 label by construction",
        "rai:machineAnnotationTools": [item.name for item in facts.ingredients if item.name.startswith("judge/")]
        or ["none"],
        "rai:dataUseCases": [
            "Training and development of models that are then tested on real scans.",
            "Not: diagnosis.",
        ],
        "rai:dataLimitations": [
            "A model trained on it must be tested on real scans that neither it nor the generator has seen.",
            "What was measured of it, and what was not, is in scorecard.json.",
        ],
        "rai:dataBiases": [
            "It shows the people, scanners and habits of its sources, and a share of each label that was chosen: "
            + (", ".join(f"{label} {count}" for label, count in facts.tally.by_label().items()) or "no samples")
        ],
        "rai:personalSensitiveInformation": [private],
        "rai:dataSocialImpact": "Synthetic pictures can lack what real ones show: claims on patients need real scans.",
        "rai:dataReleaseMaintenancePlan": "Versions never change; one not to be used is retracted, with a reason.",
        "rai:hasSyntheticData": True,
    }


def _simulated(facts: Facts) -> bool:
    """Whether the scans show no patient."""
    source = facts.recipe.get("source")
    return isinstance(source, Mapping) and source.get("dataset") == "phantom"


def _descent(facts: Facts) -> dict[str, object]:
    """What the dataset descends from, in PROV-O; entities are named by the digest of their content."""
    used = [{"@id": f"urn:sha256:{item.sha256}"} for item in facts.ingredients]
    return {
        "prov:wasDerivedFrom": [
            {"@type": "prov:Entity", "@id": f"urn:sha256:{item.sha256}", "prov:label": item.name}
            for item in facts.ingredients
        ],
        "prov:wasGeneratedBy": [
            {
                "@type": "prov:Activity",
                "@id": f"urn:sha256:{facts.recipe_digest}",
                "prov:label": "Synthesis by recipe.yaml; provenance.json has the whole of it",
                "prov:used": used,
                "prov:wasAssociatedWith": {
                    "@type": "prov:SoftwareAgent",
                    "@id": "urn:sonoforge:build",
                    "prov:label": f"sonoforge {facts.packages.get('sonoforge', '')}".strip(),
                },
            }
        ],
    }
