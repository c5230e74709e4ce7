//! Protobuf as JSON, as etcd's gateway writes it: names of the .proto file, 64-bit integers as strings,
//! bytes in base64, enums by name, defaults left out. Reading is lenient where the gateway is: names in
//! camel case too, numbers for 64-bit integers, unknown names ignored.
//!
//! Done by hand over descriptors: `prost-reflect`'s own JSON needs one crate more than we lock.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use prost_reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage, Value as V,
};
use serde_json::{Map, Value as J};

/// Deepest nesting that is read. Transactions nest; answers to nested ones do too.
const DEPTH: usize = 64;

/// A message as JSON.
pub fn write(m: &DynamicMessage) -> J {
    let mut out = Map::new();
    for f in m.descriptor().fields() {
        if m.has_field(&f) {
            out.insert(f.name().to_string(), value(&f, &m.get_field(&f)));
        }
    }
    J::Object(out)
}

fn value(f: &FieldDescriptor, v: &V) -> J {
    match v {
        V::List(items) => J::Array(items.iter().map(|v| value(f, v)).collect()),
        V::Bool(b) => J::Bool(*b),
        V::I32(n) => (*n).into(),
        V::U32(n) => (*n).into(),
        V::I64(n) => n.to_string().into(),
        V::U64(n) => n.to_string().into(),
        V::F32(n) => (*n).into(),
        V::F64(n) => (*n).into(),
        V::String(s) => s.as_str().into(),
        V::Bytes(b) => STANDARD.encode(b).into(),
        V::Message(m) => write(m),
        V::EnumNumber(n) => match f.kind() {
            Kind::Enum(e) => e.get_value(*n).map_or_else(|| (*n).into(), |v| v.name().into()),
            _ => (*n).into(),
        },
        V::Map(_) => J::Null, // etcd's messages have none
    }
}

/// A message from JSON, or why not.
pub fn read(j: &J, descriptor: &MessageDescriptor) -> Result<DynamicMessage, String> {
    message(j, descriptor, DEPTH)
}

fn message(j: &J, descriptor: &MessageDescriptor, depth: usize) -> Result<DynamicMessage, String> {
    let depth = depth.checked_sub(1).ok_or("the message is nested too deeply")?;
    let fields = j.as_object().ok_or_else(|| format!("{} is not an object", descriptor.name()))?;
    let mut m = DynamicMessage::new(descriptor.clone());
    for (name, j) in fields {
        let Some(f) = descriptor.get_field_by_name(name).or_else(|| descriptor.get_field_by_json_name(name))
        else {
            continue;
        };
        if j.is_null() {
            continue;
        }
        let v = if f.is_list() {
            let items = j.as_array().ok_or_else(|| format!("{name} is not an array"))?;
            V::List(items.iter().map(|j| scalar(j, &f, depth)).collect::<Result<_, _>>()?)
        } else {
            scalar(j, &f, depth)?
        };
        m.set_field(&f, v);
    }
    Ok(m)
}

fn scalar(j: &J, f: &FieldDescriptor, depth: usize) -> Result<V, String> {
    let bad = |what: &str| format!("{} is not {what}", f.name());
    let text = j.as_str();
    Ok(match f.kind() {
        Kind::Bool => V::Bool(j.as_bool().ok_or_else(|| bad("true or false"))?),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
            V::I64(j.as_i64().or_else(|| text?.parse().ok()).ok_or_else(|| bad("a 64-bit integer"))?)
        }
        Kind::Uint64 | Kind::Fixed64 => V::U64(
            j.as_u64().or_else(|| text?.parse().ok()).ok_or_else(|| bad("an unsigned 64-bit integer"))?,
        ),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
            let n = j.as_i64().and_then(|n| i32::try_from(n).ok());
            V::I32(n.or_else(|| text?.parse().ok()).ok_or_else(|| bad("a 32-bit integer"))?)
        }
        Kind::Uint32 | Kind::Fixed32 => {
            let n = j.as_u64().and_then(|n| u32::try_from(n).ok());
            V::U32(n.or_else(|| text?.parse().ok()).ok_or_else(|| bad("an unsigned 32-bit integer"))?)
        }
        Kind::Float => V::F32(j.as_f64().ok_or_else(|| bad("a number"))? as f32),
        Kind::Double => V::F64(j.as_f64().ok_or_else(|| bad("a number"))?),
        Kind::String => V::String(text.ok_or_else(|| bad("a string"))?.to_string()),
        Kind::Bytes => {
            let decoded = text.and_then(|t| STANDARD.decode(t).ok());
            V::Bytes(decoded.ok_or_else(|| bad("base64"))?.into())
        }
        Kind::Enum(e) => V::EnumNumber(number(j, &e).ok_or_else(|| bad("one of its names"))?),
        Kind::Message(d) => V::Message(message(j, &d, depth)?),
    })
}

fn number(j: &J, e: &EnumDescriptor) -> Option<i32> {
    match j {
        J::String(name) => Some(e.get_value_by_name(name)?.number()),
        other => i32::try_from(other.as_i64()?).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::gateway::pool;
    use prost::Message;

    #[test]
    fn what_is_written_is_read_again() {
        let txn = r#"{"compare":[{"result":"GREATER","target":"VALUE","key":"AAE=","value":"/w=="}],
            "success":[{"request_put":{"key":"YQ==","value":"Yg==","lease":"-7"}}],
            "failure":[{"requestTxn":{"success":[{"request_range":{"key":"YQ==","limit":3}}]}}],"unknown":{}}"#;
        let d = pool().get_message_by_name("etcdserverpb.TxnRequest").expect("known");
        let m = read(&serde_json::from_str(txn).expect("json"), &d).expect("reads");
        let again = read(&write(&m), &d).expect("reads");
        assert_eq!(again.encode_to_vec(), m.encode_to_vec());
        assert_eq!(write(&m)["failure"][0]["request_txn"]["success"][0]["request_range"]["limit"], "3");
        assert_eq!(write(&m)["compare"][0]["result"], "GREATER");
        for bad in
            [r#"[]"#, r#"{"compare":{}}"#, r#"{"compare":[{"key":5}]}"#, r#"{"compare":[{"target":"X"}]}"#]
        {
            assert!(read(&serde_json::from_str(bad).expect("json"), &d).is_err(), "{bad}");
        }
        let mut deep = serde_json::json!({});
        for _ in 0..100 {
            deep = serde_json::json!({ "success": [{ "request_txn": deep }] });
        }
        assert!(read(&deep, &d).is_err());
    }
}
