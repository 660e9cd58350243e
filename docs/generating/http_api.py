"""Generate the page of the HTTP API from the service's OpenAPI document."""

import json
import re
from pathlib import Path
from typing import Any

from service.app import create_service
from service.settings import Settings

INTRODUCTION = """# HTTP API

This page is generated from the OpenAPI document with the default limits. A running service has it at `/openapi.json`.
Every response has the header `X-Request-ID` (the caller's, if it sent one). Those of `/predict` also have `X-Bundle`
and `Server-Timing`. Every error has a code for programs and a message for people:

```json
{"error": {"code": "out_of_range", "message": "k is 1000; the maximum is 100."}}
```

`X-Api-Key` is required only if `DIPTYCH_PREDICT_KEY` is set. `/admin/` is off until `DIPTYCH_ADMIN_KEY` or
`DIPTYCH_ADMIN_KEYS` is set (see [settings](settings.md)). If `DIPTYCH_ALLOWED_HOSTS` is set, a request with another
name in its Host header is answered 421, except on `/livez` and `/readyz`.
"""
Schema = dict[str, Any]


def page() -> str:
    """Render the page as Markdown."""
    settings = Settings(store=Path("store"), admin_key="only for this document", predict_key="-")  # type: ignore[arg-type]
    document = create_service(settings).fastapi.openapi()
    parts = [INTRODUCTION]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(_operation(path, method.upper(), operation, document))
    return "\n\n".join(parts) + "\n"


def _operation(path: str, method: str, operation: Schema, document: Schema) -> str:
    parts = [f"## {method} {path}", f"{operation['summary']}."]
    if schemes := [scheme for one in operation.get("security", []) for scheme in one]:
        parts.append(f"Key in `{document['components']['securitySchemes'][schemes[0]]['name']}`.")
    if headers := [one for one in operation.get("parameters", []) if one["in"] == "header"]:
        parts.append("\n".join(f"Header `{one['name']}`: {one.get('description', '')}" for one in headers))
    if body := operation.get("requestBody"):
        parts += _described("Request", _json(body), document)
    for status, answer in operation["responses"].items():
        if status == "200" and (schema := _json(answer)):
            parts += _described("Response 200", schema, document)
    refusals = {status: one for status, one in operation["responses"].items() if status != "200"}
    if refusals:
        rows = [f"| {status} | {one['description']} |" for status, one in sorted(refusals.items())]
        parts.append("\n".join(["| status | when |", "|---|---|", *rows]))
    return "\n\n".join(parts)


def _json(part: Schema) -> Schema:
    schema: Schema = part.get("content", {}).get("application/json", {}).get("schema", {})
    return schema


def _described(title: str, schema: Schema, document: Schema) -> list[str]:
    """Describe an object: its fields, its examples, and the objects in its fields."""
    parts = _fields(title, schema, document)
    for example in _resolved(schema, document).get("examples", []):
        parts.append("\n".join(["```json", json.dumps(example, indent=2, ensure_ascii=False), "```"]))
    for name in _within(schema, document):
        parts += _fields(f"`{name}`", document["components"]["schemas"][name], document)
    return parts


def _fields(title: str, schema: Schema, document: Schema) -> list[str]:
    """Describe an object and tabulate its fields; empty if it has no named fields."""
    whole = _resolved(schema, document)
    if not (fields := whole.get("properties")):
        return []
    required = whole.get("required", [])
    rows = [_field(name, field, name in required, document) for name, field in fields.items()]
    says = f"**{title}.** {' '.join(whole.get('description', '').split())}".rstrip()
    return [says, "\n".join(["| field | type | description |", "|---|---|---|", *rows])]


def _within(schema: Schema, document: Schema) -> list[str]:
    """Return the names of all objects nested in an object's fields, each once."""
    names: list[str] = []
    for field in _resolved(schema, document).get("properties", {}).values():
        for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(field)):
            names += [name, *_within(document["components"]["schemas"][name], document)]
    return list(dict.fromkeys(names))


def _field(name: str, field: Schema, required: bool, document: Schema) -> str:
    says = [field["description"]] if "description" in field else []
    if not required and field.get("default") is not None:
        says.append(f"Default {json.dumps(field['default'])}.")
    elif not required and "default" not in field and "anyOf" not in field:
        says.append("Optional.")
    return f"| `{name}` | {_type(field, document)} | {' '.join(says)} |"


def _type(field: Schema, document: Schema) -> str:
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_type(one, document) for one in field["anyOf"]))
    if "$ref" in field:
        return str(field["$ref"]).rsplit("/", 1)[-1]
    if "enum" in field:
        return ", ".join(f"`{one}`" for one in field["enum"])
    match field.get("type"):
        case "array":
            return f"list{_bounds(field, 'minItems', 'maxItems')} of {_type(field['items'], document)}"
        case "object":
            values = field.get("additionalProperties")
            return f"object of {_type(values, document)}" if isinstance(values, dict) else "object"
        case "string":
            bounds = _bounds(field, "minLength", "maxLength")
            return f"string{bounds.replace(')', ' characters)')}"
        case None:
            return "any"
        case kind:
            return f"{kind}{_bounds(field, 'minimum', 'maximum')}"


def _bounds(field: Schema, least: str, most: str) -> str:
    if most in field:
        return f" ({field.get(least, 0)} to {field[most]})"
    return f" (at least {field[least]})" if least in field else ""


def _resolved(schema: Schema, document: Schema) -> Schema:
    if "$ref" not in schema:
        return schema
    resolved: Schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
    return resolved
