//! The OpenAPI 3.1 document, made from the table of endpoints, and a reference page that needs no other server.

use std::sync::{Arc, LazyLock};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{Html, Response};
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::endpoint::{Endpoint, json_response};
use super::error::Problem;
use crate::actors::Hub;
use crate::domain::error::Code;

static DOCUMENT: LazyLock<String> = LazyLock::new(|| build(&super::endpoints()).to_string());

/// `GET /v1/openapi.json`
pub async fn document(State(_): State<Arc<Hub>>) -> Response {
    json_response(StatusCode::OK, DOCUMENT.as_bytes().into())
}

/// `GET /v1/docs`
pub async fn page() -> Html<&'static str> {
    Html(include_str!("reference.html"))
}

/// Makes the document.
#[must_use]
pub fn build(endpoints: &[Endpoint]) -> Value {
    let settings = SchemaSettings::draft2020_12().with(|s| s.definitions_path = "/components/schemas".into());
    let mut schemas = settings.into_generator();
    let problem = schemas.subschema_for::<Problem>();
    let mut paths: Map<String, Value> = Map::new();
    for endpoint in endpoints {
        let operation = operation(endpoint, &mut schemas);
        let path = paths.entry(endpoint.path).or_insert_with(|| json!({}));
        path[endpoint.method.as_str().to_lowercase()] = operation;
    }
    let codes: Vec<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Colink", "version": env!("CARGO_PKG_VERSION"), "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": format!("A self-hosted realtime collaboration hub. Errors are RFC 9457 problem details; `code` is \
                one of: {}. Lists are paged by `next_cursor`. Answers to a signed-in caller say in `X-RateLimit-Limit`, `X-RateLimit-Remaining` and \
                `X-RateLimit-Reset` how many requests may still come. What takes an \
                `Idempotency-Key` (1 to 64 printable ASCII characters, kept for `limits.idempotency_hours`, 24 by default) is done once: a repeat gets the \
                first answer, less a new token or an invitation's code, which are shown once. Signing in and up, signing out and changing \
                the password take none. The realtime protocol is in docs/PROTOCOL.md.", codes.join(", ")),
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": schemas.take_definitions(true),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "responses": {"Problem": {
                "description": "Refused", "content": {"application/problem+json": {"schema": problem}},
                "headers": {"Retry-After": {"$ref": "#/components/headers/Retry-After"}},
            }},
            "headers": {
                "X-RateLimit-Limit": header("How many requests of the caller may come at once"),
                "X-RateLimit-Remaining": header("How many of these are left"),
                "X-RateLimit-Reset": header("Seconds until all of them are there again"),
                "Retry-After": header("Seconds after which trying again makes sense"),
            },
        },
    })
}

fn header(description: &str) -> Value {
    json!({"description": description, "schema": {"type": "integer", "minimum": 0}})
}

fn operation(endpoint: &Endpoint, schemas: &mut SchemaGenerator) -> Value {
    let in_path: Vec<&str> =
        endpoint.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
    let mut parameters: Vec<Value> = in_path.iter().map(|name| path_parameter(name)).collect();
    if let Some(query) = endpoint.query {
        let schema = inlined(query, schemas);
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            parameters.push(json!({"name": name, "in": "query", "required": required.contains(&json!(name)),
                "description": field["description"], "schema": field}));
        }
    }
    if endpoint.takes_key {
        parameters.push(json!({"name": "Idempotency-Key", "in": "header", "required": false,
            "schema": {"type": "string", "maxLength": 64}}));
    }
    let reply = (endpoint.reply)(schemas);
    let mut operation = json!({
        "summary": endpoint.summary,
        "operationId": operation_id(endpoint),
        "tags": [tag(endpoint.path)],
        "parameters": parameters,
        "responses": {
            endpoint.status.as_str(): {"description": "Done", "content": {endpoint.media: {"schema": reply}}},
            "default": {"$ref": "#/components/responses/Problem"},
        },
    });
    if endpoint.signed_in {
        let names = ["X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"];
        let headers = names.map(|name| (name.to_owned(), json!({"$ref": format!("#/components/headers/{name}")})));
        operation["responses"][endpoint.status.as_str()]["headers"] = Value::Object(headers.into_iter().collect());
    } else {
        operation["security"] = json!([]);
    }
    if let Some(command) = endpoint.command {
        operation["description"] = json!(format!("The same as the gateway's `{command}`."));
    }
    if let Some(body) = endpoint.body {
        let schema = without(inlined(body, schemas), &in_path);
        if schema["properties"].as_object().is_some_and(|fields| !fields.is_empty()) {
            operation["requestBody"] = json!({"required": schema.get("required").is_some(),
                "content": {"application/json": {"schema": schema}}});
        }
    }
    operation
}

/// Returns a schema itself rather than a reference to it.
fn inlined(make: fn(&mut SchemaGenerator) -> schemars::Schema, schemas: &mut SchemaGenerator) -> Value {
    let schema = make(schemas).to_value();
    let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) else { return schema };
    schemas.definitions().get(name).cloned().unwrap_or(schema)
}

/// Takes out of a body what stands in the path.
fn without(mut schema: Value, in_path: &[&str]) -> Value {
    if let Some(fields) = schema["properties"].as_object_mut() {
        fields.retain(|name, _| !in_path.contains(&name.as_str()));
    }
    if let Some(required) = schema["required"].as_array_mut() {
        required.retain(|name| !in_path.iter().any(|part| name == part));
        if required.is_empty() {
            schema.as_object_mut().map(|fields| fields.remove("required"));
        }
    }
    schema
}

fn path_parameter(name: &str) -> Value {
    let schema = match name {
        "seq" | "thread_seq" => json!({"type": "integer", "format": "int64", "minimum": 1}),
        "emoji" => json!({"type": "string"}),
        _ => json!({"type": "string", "format": "uuid"}),
    };
    json!({"name": name, "in": "path", "required": true, "schema": schema})
}

fn operation_id(endpoint: &Endpoint) -> String {
    let words = endpoint.path.split(['/', '_']).filter(|part| !part.is_empty() && *part != "v1");
    let words: Vec<&str> = words.map(|part| part.trim_matches(['{', '}'])).collect();
    format!("{}_{}", endpoint.method.as_str().to_lowercase(), words.join("_").replace(['{', '}'], ""))
}

fn tag(path: &str) -> &str {
    path.split('/').nth(2).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_its_own_name_and_no_reference_dangles() {
        let document = build(&crate::http::endpoints());
        let mut names = std::collections::HashSet::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                let name = operation["operationId"].as_str().unwrap();
                assert!(names.insert(name.to_owned()), "{method} {path}: {name} is taken");
            }
        }
        let text = document.to_string();
        for part in text.split("\"$ref\":\"#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(document["components"]["schemas"][name].is_object(), "{name}");
        }
    }

    #[test]
    fn every_command_has_a_url() {
        let endpoints = crate::http::endpoints();
        for name in crate::domain::command::Command::NAMES {
            assert!(endpoints.iter().any(|e| e.command == Some(name)), "{name} has no URL");
        }
    }
}
