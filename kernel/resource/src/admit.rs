//! Foreign JSON to checked values. Errors name the field.

use crate::{Reference, Resource};
use photon_base::{Error, Result};
use schemars::{JsonSchema, generate::SchemaSettings};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The JSON Schema of `T`, subschemas inlined where possible.
pub fn schema<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|s| {
        s.inline_subschemas = true;
        s.meta_schema = None;
    });
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

fn read<T: DeserializeOwned>(value: Value, at: &str) -> Result<T> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let path = e.path().to_string();
        let field = if path == "." { at.to_string() } else { format!("{at}.{path}") };
        // Our own parsers put a whole Error into the text; its first clause is the message.
        Error::invalid(field, e.into_inner().to_string())
    })
}

fn write<T: serde::Serialize>(value: &T) -> Result<Value> {
    serde_json::to_value(value).map_err(|e| Error::internal("a value can't be written as JSON").why(e))
}

/// Checks a spec and returns it with defaults filled in, and what it names.
pub fn spec<R: Resource>(value: Value) -> Result<(Value, Vec<Reference>)> {
    let spec: R = read(value, "spec")?;
    spec.validate().map_err(|e| e.within("spec"))?;
    Ok((write(&spec)?, spec.references()))
}

/// Checks a change.
pub fn update<R: Resource>(old: &Value, new: &Value) -> Result<()> {
    let old: R = read(old.clone(), "spec")?;
    let new: R = read(new.clone(), "spec")?;
    new.validate_update(&old).map_err(|e| e.within("spec"))
}

/// Checks a status.
pub fn status<R: Resource>(value: Value) -> Result<Value> {
    let status: R::Status = if value.is_null() { R::Status::default() } else { read(value, "status")? };
    write(&status)
}
