//! OpenAPI 3.1 from the registry.

use crate::{KindInfo, Registry, Scope};
use serde_json::{Map, Value, json};

fn capital(kind: &str) -> String {
    kind.split('-').map(|p| p[..1].to_uppercase() + &p[1..]).collect()
}

/// The kinds, for `GET /v1`.
pub fn kinds(registry: &Registry) -> Value {
    let one = |k: &KindInfo| {
        json!({ "kind": k.kind, "plural": k.plural, "service": k.service, "system": k.system,
                "scope": if k.scope == Scope::Project { "project" } else { "cluster" },
                "columns": k.columns.iter().map(|c| json!({ "title": c.title, "pointer": c.pointer })).collect::<Vec<_>>() })
    };
    json!({ "kinds": registry.kinds().iter().map(one).collect::<Vec<_>>() })
}

/// The whole document.
pub fn document(registry: &Registry) -> Value {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    schemas.insert("Meta".into(), crate::admit::schema::<crate::Meta>());
    for k in registry.kinds() {
        let name = capital(k.kind);
        schemas.insert(
            name.clone(),
            json!({ "type": "object", "required": ["meta", "spec"], "properties": {
                "kind": { "const": k.kind }, "meta": { "$ref": "#/components/schemas/Meta" },
                "spec": (k.spec_schema)(), "status": (k.status_schema)() } }),
        );
        let base = match k.scope {
            Scope::Project => format!("/v1/projects/{{project}}/{}", k.plural),
            Scope::Cluster => format!("/v1/{}", k.plural),
        };
        let parameter =
            |n: &str| json!({ "name": n, "in": "path", "required": true, "schema": { "type": "string" } });
        let mut params: Vec<Value> =
            if k.scope == Scope::Project { vec![parameter("project")] } else { vec![] };
        let object = json!({ "content": { "application/json": { "schema": { "$ref": format!("#/components/schemas/{name}") } } } });
        let operation = |id: &str, body: bool, status: &str| {
            let mut op = json!({ "operationId": format!("{}.{id}", k.kind), "tags": [k.service],
                "responses": { status: { "description": "done", "content": object["content"] },
                               "default": { "description": "a problem document (RFC 9457)" } } });
            if body {
                op["requestBody"] = object.clone();
            }
            op
        };
        let query = |n: &str, t: &str| json!({ "name": n, "in": "query", "schema": { "type": t } });
        let mut list = operation("list", false, "200");
        list["parameters"] = json!([
            query("limit", "integer"),
            query("cursor", "string"),
            query("labels", "string"),
            query("fields", "string"),
            query("watch", "boolean"),
            query("revision", "integer")
        ]);
        let mut collection = json!({ "parameters": params, "get": list });
        params.push(parameter("name"));
        let mut item = json!({ "parameters": params, "get": operation("get", false, "200") });
        if !k.system {
            collection["post"] = operation("create", true, "202");
            item["put"] = operation("replace", true, "200");
            item["patch"] = operation("update", true, "200");
            item["delete"] = operation("delete", false, "202");
        }
        paths.insert(base.clone(), collection);
        paths.insert(format!("{base}/{{name}}"), item);
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": "PhotonCloud", "version": env!("CARGO_PKG_VERSION"),
                  "description": "One resource model for every service." },
        "security": [{ "token": [] }, { "certificate": [] }],
        "paths": paths,
        "components": { "schemas": schemas, "securitySchemes": {
            "token": { "type": "http", "scheme": "bearer" }, "certificate": { "type": "mutualTLS" } } },
    })
}
