//! `photon apply -f`: objects of a YAML or JSON file.

use super::{Format, Global, KeepToken, kinds, output};
use http::Method;
use photon_base::{Code, Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{io::Read, path::PathBuf};

/// Flags of `apply`.
#[derive(clap::Args)]
pub struct ApplyArgs {
    /// File with one or more documents; `-` is standard input.
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Show what would change, change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Project of objects that name none.
    #[arg(long, env = "PHOTON_PROJECT")]
    project: Option<String>,
}

/// Largest file read.
const BYTES_MAX: u64 = 16 << 20;

fn documents(text: &str) -> Result<Vec<Value>> {
    let bad = |e: serde_yaml_ng::Error| Error::invalid("file", "is neither YAML nor JSON").why(e);
    let mut out = Vec::new();
    for d in serde_yaml_ng::Deserializer::from_str(text) {
        let v = Value::deserialize(d).map_err(bad)?;
        match v["items"].as_array() {
            Some(items) => out.extend(items.iter().cloned()),
            None if v.is_null() => {}
            None => out.push(v),
        }
    }
    Ok(out)
}

/// Creates what is missing and changes what differs, in the order of the file.
pub async fn apply(global: &Global, args: ApplyArgs) -> Result<()> {
    let text = if args.file.as_os_str() == "-" {
        let mut s = String::new();
        let read = std::io::stdin().take(BYTES_MAX).read_to_string(&mut s);
        read.map_err(|e| Error::invalid("file", "cannot be read").why(e))?;
        s
    } else {
        photon_rt::fs::read_text(&args.file, BYTES_MAX)?
    };
    let client = global.client().await?;
    let registry = photon_api::registry();
    for (i, d) in documents(&text)?.into_iter().enumerate() {
        let named = d["kind"].as_str().unwrap_or_default();
        let kind = registry.kind(named).ok_or_else(|| {
            Error::invalid(format!("document {}", i + 1), format!("has no known kind ({named:?})"))
                .hint("photon explain vm")
        })?;
        let name: photon_base::Name = d["meta"]["name"]
            .as_str()
            .unwrap_or_default()
            .parse()
            .map_err(|e: Error| e.within("meta.name"))?;
        let project = d["meta"]["project"].as_str().or(args.project.as_deref());
        let base = kinds::list_path(kind, project)?;
        let dry = if args.dry_run { "?dryRun=true" } else { "" };
        let body = json!({ "meta": { "name": name, "labels": d["meta"].get("labels").cloned().unwrap_or(json!({})) },
                           "spec": d.get("spec").cloned().unwrap_or(json!({})) });
        let (r, made) = match client.get(&format!("{base}/{name}")).await {
            Ok(_) => (client.call(Method::PUT, &format!("{base}/{name}{dry}"), Some(&body)).await?, false),
            Err(e) if e.code == Code::NotFound => {
                (client.call(Method::POST, &format!("{base}{dry}"), Some(&body)).await?, true)
            }
            Err(e) => return Err(e),
        };
        match (global.output, args.dry_run) {
            (Format::Table, true) => {
                output::line(&format!("{named} {name}:"));
                let columns = [("FIELD", "/field"), ("FROM", "/old"), ("TO", "/new")];
                output::table(&columns, r["changes"].as_array().map(Vec::as_slice).unwrap_or_default());
            }
            (Format::Table, false) => {
                output::line(&format!("{named} {name} {}", if made { "created" } else { "applied" }))
            }
            (Format::Name, _) => output::line(name.as_str()),
            (f, _) => output::value(f, &r),
        }
    }
    client.keep_token(global).await;
    Ok(())
}
