#!/usr/bin/env python3
"""Checks manifests of packages against the schema: accepted as they are, refused with any one key misspelt or one too many in any table.

usage: check_schema.py SCHEMA.json MODEL.toml...

Prints what was tried. Needs tests/python/requirements.txt.
"""

import copy
import json
import sys
import tomllib

import jsonschema


def tables(value, path=()):
    """Every table of a document with the keys that lead there."""
    if isinstance(value, dict):
        yield path, value
    for key, child in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from tables(child, (*path, key))


def at(document, path):
    for key in path:
        document = document[key]
    return document


schema = json.load(open(sys.argv[1]))
jsonschema.Draft202012Validator.check_schema(schema)
validator = jsonschema.Draft202012Validator(schema)
accepted = refused = 0
for name in sys.argv[2:]:
    manifest = tomllib.load(open(name, "rb"))
    errors = [error.message for error in validator.iter_errors(manifest)]
    assert not errors, f"{name}: {errors}"
    accepted += 1
    for path, table in tables(manifest):
        more = copy.deepcopy(manifest)
        at(more, path)["zzz"] = 1
        assert not validator.is_valid(more), f"{name}: accepts zzz in {path}"
        refused += 1
        for key in table:
            misspelt = copy.deepcopy(manifest)
            there = at(misspelt, path)
            there[key + "s"] = there.pop(key)
            assert not validator.is_valid(misspelt), f"{name}: accepts {key}s in {path}"
            refused += 1
    for kind in ("transformer", 1, None):
        wrong = copy.deepcopy(manifest)
        wrong["architecture"]["kind"] = kind
        assert not validator.is_valid(wrong), f"{name}: accepts the architecture {kind}"
        refused += 1
print(f"{accepted} manifests accepted, {refused} refused")
