//! Commands of resource kinds, made from the registry: list, get, create, edit, delete, watch, explain; and
//! the few that only one kind has.

use super::{Format, Global, KeepToken, console, image, join, output, wait};
use clap::{Arg, ArgAction, ArgMatches, Command};
use http::Method;
use photon_base::{Code, Error, Result};
use photon_client::{Change, Client};
use photon_resource::{KindInfo, Registry, Scope};
use photon_rt::time::Duration;
use serde_json::{Map, Value, json};

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).help(help)
}

fn name_arg() -> Arg {
    Arg::new("name").required(true).value_name("NAME")
}

fn project_arg() -> Arg {
    flag("project", "Project").env("PHOTON_PROJECT").value_name("PROJECT")
}

fn wait_args(c: Command) -> Command {
    c.arg(flag("wait", "Return when it has taken effect").action(ArgAction::SetTrue)).arg(
        flag("timeout", "Longest wait, in seconds")
            .value_name("SECONDS")
            .default_value("300")
            .value_parser(clap::value_parser!(u64)),
    )
}

fn leak(s: String) -> &'static str {
    Box::leak(s.into_boxed_str()) // a few names, once, at start: clap wants them for ever
}

fn kebab(camel: &str) -> String {
    camel
        .chars()
        .flat_map(|c| if c.is_uppercase() { vec!['-', c.to_ascii_lowercase()] } else { vec![c] })
        .collect()
}

/// A flag that sets a field of the spec.
struct Field {
    flag: &'static str,
    pointer: String,
    help: String,
    boolean: bool,
    integer: bool,
}

fn fields(kind: &KindInfo) -> Vec<Field> {
    let schema = (kind.spec_schema)();
    let mut out = Vec::new();
    for (name, s) in schema["properties"].as_object().into_iter().flatten() {
        let text = s.to_string();
        let has = |t: &str| {
            text.contains(&format!("\"type\":\"{t}\"")) || text.contains(&format!("\"type\":[\"{t}\""))
        };
        if has("array") || has("object") {
            continue;
        }
        out.push(Field {
            flag: leak(kebab(name)),
            pointer: format!("/{name}"),
            help: s["description"].as_str().unwrap_or_default().to_string(),
            boolean: has("boolean"),
            integer: has("integer"),
        });
    }
    for f in kind.flags {
        out.push(Field {
            flag: f.name,
            pointer: f.pointer.into(),
            help: f.help.into(),
            boolean: false,
            integer: false,
        });
    }
    out
}

fn field_args(mut c: Command, kind: &KindInfo) -> Command {
    for f in fields(kind) {
        let mut a = Arg::new(f.flag).long(f.flag).help(f.help).value_name("VALUE");
        if f.boolean {
            a = a.num_args(0..=1).default_missing_value("true");
        }
        if f.pointer.contains("/-/") {
            a = a.action(ArgAction::Append);
        }
        c = c.arg(a);
    }
    c.arg(
        flag("label", "A label, KEY=VALUE; may be repeated")
            .action(ArgAction::Append)
            .value_name("KEY=VALUE"),
    )
    .arg(flag("dry-run", "Show what would change, change nothing").action(ArgAction::SetTrue))
}

/// The command line with one command for each kind.
pub fn add_to(mut root: Command, registry: &Registry) -> Command {
    for k in registry.kinds() {
        let scoped = |c: Command| if k.scope == Scope::Project { c.arg(project_arg()) } else { c };
        let mut c = Command::new(k.kind)
            .about(leak(format!("Work with {}", k.plural)))
            .subcommand_required(true)
            .arg_required_else_help(true);
        let list = Command::new("list")
            .visible_alias("ls")
            .about("List")
            .arg(flag("labels", "Only those with these labels: KEY=VALUE,KEY!=VALUE,KEY"))
            .arg(flag("fields", "Only those with these values: status.phase=running"))
            .arg(flag("limit", "Most objects").value_parser(clap::value_parser!(u32)).default_value("1000"));
        c = c.subcommand(scoped(list));
        c = c.subcommand(scoped(Command::new("get").about("Show one").arg(name_arg())));
        c = c.subcommand(scoped(Command::new("watch").about("Follow changes until interrupted")));
        c = c.subcommand(Command::new("explain").about("Show its fields"));
        if !k.system {
            let example = format!(
                "Example: photon {} create a{}",
                k.kind,
                if k.scope == Scope::Project { " --project demo" } else { "" }
            );
            if k.kind != "node" {
                let create = Command::new("create").about("Create").after_help(leak(example)).arg(name_arg());
                c = c.subcommand(wait_args(scoped(field_args(create, k))));
            }
            c = c.subcommand(wait_args(scoped(field_args(
                Command::new("edit").about("Change fields").arg(name_arg()),
                k,
            ))));
            c = c.subcommand(wait_args(scoped(
                Command::new("delete").visible_aliases(["rm", "remove"]).about("Delete").arg(name_arg()),
            )));
        }
        if k.kind == "vm" {
            for (verb, about) in [
                ("start", "Switch on"),
                ("stop", "Shut the guest down and switch off"),
                ("pause", "Let it stand still"),
                ("resume", "Let it go on"),
                ("reboot", "Reboot in an orderly way"),
                ("reset", "Reset at once, as by the button"),
            ] {
                c = c.subcommand(wait_args(scoped(Command::new(verb).about(about).arg(name_arg()))));
            }
            c = c.subcommand(scoped(
                Command::new("console").about("Attach to the serial console; Ctrl-] leaves").arg(name_arg()),
            ));
        }
        if k.kind == "node" {
            c = c.subcommand(join::token_command());
            for (verb, about) in
                [("drain", "Give its leadership away and keep new VMs from it"), ("undrain", "Use it again")]
            {
                c = c.subcommand(wait_args(Command::new(verb).about(about).arg(name_arg())));
            }
        }
        if k.kind == "image" {
            c = c.subcommand(wait_args(image::command()));
        }
        if k.kind == "user" {
            c = c.subcommand(
                Command::new("set-password")
                    .about("Set the password, read from standard input")
                    .arg(name_arg()),
            );
        }
        root = root.subcommand(c);
    }
    root.subcommand(
        Command::new("get")
            .about("Show objects of every kind")
            .arg(Arg::new("what").required(true).value_parser(["all"]))
            .arg(project_arg()),
    )
}

/// Path of a kind's list.
pub fn list_path(kind: &KindInfo, project: Option<&str>) -> Result<String> {
    match (kind.scope, project) {
        (Scope::Cluster, _) => Ok(format!("/v1/{}", kind.plural)),
        (Scope::Project, Some(p)) => {
            let p: photon_base::Name = p.parse().map_err(|e: Error| e.within("project"))?;
            Ok(format!("/v1/projects/{p}/{}", kind.plural))
        }
        (Scope::Project, None) => Err(Error::invalid("project", format!("{} live in projects", kind.plural))
            .hint("add --project NAME, or set PHOTON_PROJECT")),
    }
}

fn columns(kind: &KindInfo, everywhere: bool) -> Vec<(&'static str, &'static str)> {
    let mut c = vec![("NAME", "/meta/name")];
    if everywhere && kind.scope == Scope::Project {
        c.insert(0, ("PROJECT", "/meta/project"));
    }
    c.extend(kind.columns.iter().map(|c| (c.title, c.pointer)));
    c
}

/// Prints objects.
fn show(global: &Global, kind: &KindInfo, items: &[Value], one: bool, everywhere: bool) {
    match global.output {
        Format::Table => output::table(&columns(kind, everywhere), items),
        Format::Name => {
            items.iter().for_each(|i| output::line(i["meta"]["name"].as_str().unwrap_or_default()))
        }
        f if one => items.iter().for_each(|i| output::value(f, i)),
        f => output::value(f, &json!({ "kind": format!("{}-list", kind.kind), "items": items })),
    }
}

/// Runs `photon KIND …`.
pub async fn run(global: &Global, kind: &KindInfo, m: &ArgMatches) -> Result<()> {
    let Some((verb, m)) = m.subcommand() else { return Ok(()) };
    if verb == "explain" {
        return explain(kind.kind);
    }
    let project = (kind.scope == Scope::Project && m.try_contains_id("project").is_ok())
        .then(|| m.get_one::<String>("project").map(String::as_str))
        .flatten();
    let name =
        m.try_get_one::<String>("name").ok().flatten().map(|n| n.parse::<photon_base::Name>()).transpose();
    let name = name.map_err(|e| e.within("name"))?.map(|n| n.to_string()).unwrap_or_default();
    let client = global.client().await?;
    if verb == "list" {
        let r = list(global, kind, &client, project, m).await;
        client.keep_token(global).await;
        return r;
    }
    let base = if verb == "watch" && project.is_none() {
        format!("/v1/{}", kind.plural)
    } else {
        list_path(kind, project)?
    };
    let item = format!("{base}/{name}");
    let result = match verb {
        "get" => {
            let o = client.get(&item).await?;
            show(global, kind, &[o], true, false);
            Ok(())
        }
        "create" => {
            let mut spec = json!({});
            set_fields(kind, m, &mut spec)?;
            let body = json!({ "meta": { "name": name, "labels": labels(m)? }, "spec": spec });
            act(global, kind, &client, m, &base, Method::POST, &base, body).await
        }
        "edit" => {
            let mut spec = json!({});
            set_fields(kind, m, &mut spec)?;
            let body = json!({ "meta": { "labels": labels(m)? }, "spec": spec });
            act(global, kind, &client, m, &base, Method::PATCH, &item, body).await
        }
        "delete" => {
            let left = client.call(Method::DELETE, &item, None).await?;
            // Without finalizers it is gone with the answer.
            let mut gone = left["meta"]["finalizers"].as_array().is_none_or(Vec::is_empty);
            if m.get_flag("wait") && !gone {
                wait::gone(&client, kind, &base, &name, limit(m)).await?;
                gone = true;
            }
            said(global, kind, &name, if gone { "deleted" } else { "is being deleted" });
            Ok(())
        }
        "watch" => watch(global, kind, &client, &base).await,
        "start" | "resume" => {
            act(global, kind, &client, m, &base, Method::PATCH, &item, json!({"spec": {"power": "running"}}))
                .await
        }
        "stop" => {
            act(global, kind, &client, m, &base, Method::PATCH, &item, json!({"spec": {"power": "stopped"}}))
                .await
        }
        "pause" => {
            act(global, kind, &client, m, &base, Method::PATCH, &item, json!({"spec": {"power": "paused"}}))
                .await
        }
        "reboot" | "reset" => {
            let field = if verb == "reboot" { "reboots" } else { "resets" };
            let old = client.get(&item).await?;
            let body = json!({ "spec": { field: old["spec"][field].as_u64().unwrap_or(0) + 1 } });
            act(global, kind, &client, m, &base, Method::PATCH, &item, body).await
        }
        "drain" | "undrain" => {
            let body = json!({ "spec": { "drain": verb == "drain" } });
            act(global, kind, &client, m, &base, Method::PATCH, &item, body).await
        }
        "token" => join::token(global, &client, m).await,
        "console" => console::attach(&client, &format!("{item}/console")).await,
        "import" => image::import(global, kind, &client, m).await,
        "set-password" => set_password(&client, &item).await,
        v => Err(Error::internal(format!("no command {v}"))),
    };
    client.keep_token(global).await;
    result
}

fn limit(m: &ArgMatches) -> Duration {
    Duration::from_secs(m.get_one::<u64>("timeout").copied().unwrap_or(300))
}

fn said(global: &Global, kind: &KindInfo, name: &str, what: &str) {
    match global.output {
        Format::Table => output::line(&format!("{} {name} {what}", kind.kind)),
        Format::Name => output::line(name),
        f => output::value(f, &json!({ "kind": kind.kind, "name": name, "result": what })),
    }
}

/// Sends a change, waits if asked, prints.
#[allow(clippy::too_many_arguments, reason = "the parts of one request, used once each")]
async fn act(
    global: &Global,
    kind: &KindInfo,
    client: &Client,
    m: &ArgMatches,
    list: &str,
    method: Method,
    path: &str,
    body: Value,
) -> Result<()> {
    let dry = m.try_get_one::<bool>("dry-run").ok().flatten().copied().unwrap_or(false);
    if dry {
        let r = client.call(method, &format!("{path}?dryRun=true"), Some(&body)).await?;
        match global.output {
            Format::Table => {
                let columns = [("FIELD", "/field"), ("FROM", "/old"), ("TO", "/new")];
                output::table(&columns, r["changes"].as_array().map(Vec::as_slice).unwrap_or_default());
            }
            f => output::value(f, &r),
        }
        return Ok(());
    }
    let mut o = client.call(method, path, Some(&body)).await?;
    if m.get_flag("wait") {
        o = wait::settled(client, kind, list, o, limit(m)).await?;
    }
    show(global, kind, &[o], true, false);
    Ok(())
}

fn labels(m: &ArgMatches) -> Result<Map<String, Value>> {
    let mut out = Map::new();
    for l in m.get_many::<String>("label").into_iter().flatten() {
        let (k, v) =
            l.split_once('=').ok_or_else(|| Error::invalid("label", format!("{l:?} is not KEY=VALUE")))?;
        out.insert(k.into(), v.into());
    }
    Ok(out)
}

fn set_fields(kind: &KindInfo, m: &ArgMatches, spec: &mut Value) -> Result<()> {
    for f in fields(kind) {
        for text in m.get_many::<String>(f.flag).into_iter().flatten() {
            let value = if f.boolean {
                let b =
                    text.parse::<bool>().map_err(|_| Error::invalid(f.flag, "is neither true nor false"))?;
                b.into()
            } else if f.integer {
                let n = text
                    .parse::<u64>()
                    .map_err(|_| Error::invalid(f.flag, format!("{text:?} is not a whole number")))?;
                n.into()
            } else {
                Value::String(text.clone())
            };
            match f.pointer.split_once("/-/") {
                Some((array, key)) => {
                    let slot = &mut spec[array.trim_start_matches('/')];
                    if !slot.is_array() {
                        *slot = json!([]);
                    }
                    if let Some(a) = slot.as_array_mut() {
                        a.push(json!({ key: value }));
                    }
                }
                None => spec[f.pointer.trim_start_matches('/')] = value,
            }
        }
    }
    Ok(())
}

async fn list(
    global: &Global,
    kind: &KindInfo,
    client: &Client,
    project: Option<&str>,
    m: &ArgMatches,
) -> Result<()> {
    let everywhere = kind.scope == Scope::Project && project.is_none();
    let base = if everywhere { format!("/v1/{}", kind.plural) } else { list_path(kind, project)? };
    let most = m.get_one::<u32>("limit").copied().unwrap_or(1000) as usize;
    let mut query = format!("limit={}", most.clamp(1, 1000));
    for p in ["labels", "fields"] {
        if let Some(v) = m.get_one::<String>(p) {
            query.push_str(&format!("&{p}={}", encode(v)));
        }
    }
    let mut items: Vec<Value> = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = client.get(&format!("{base}?{query}{cursor}")).await?;
        items.extend(page["items"].as_array().cloned().unwrap_or_default());
        match page["cursor"].as_str() {
            Some(c) if items.len() < most => cursor = format!("&cursor={c}"),
            _ => break,
        }
    }
    items.truncate(most);
    show(global, kind, &items, false, everywhere);
    Ok(())
}

/// Percent-encodes a query value.
fn encode(s: &str) -> String {
    s.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                (b as char).to_string()
            }
            b => format!("%{b:02X}"),
        })
        .collect()
}

async fn watch(global: &Global, kind: &KindInfo, client: &Client, base: &str) -> Result<()> {
    let now = client.get(&format!("{base}?limit=1000")).await?;
    let items = now["items"].as_array().cloned().unwrap_or_default();
    show(global, kind, &items, false, true);
    let mut w = client.watch(base, now["revision"].as_u64().unwrap_or(0));
    loop {
        match w.next().await? {
            Change::Put(o) => match global.output {
                Format::Json => output::line(&o.to_string()),
                _ => show(global, kind, &[o], true, true),
            },
            Change::Delete { name, .. } => said(global, kind, &name, "deleted"),
        }
    }
}

async fn set_password(client: &Client, item: &str) -> Result<()> {
    use std::io::{BufRead, IsTerminal};
    if std::io::stdin().is_terminal() {
        eprint!("New password (12 to 256 bytes): ");
    }
    let mut text = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut text)
        .map_err(|e| Error::internal("cannot read the password").why(e))?;
    let body = json!({ "password": text.trim_end_matches(['\r', '\n']) });
    client.call(Method::POST, &format!("{item}/password"), Some(&body)).await?;
    output::line("password set");
    Ok(())
}

/// `photon get all`.
pub async fn get_all(global: &Global, m: &ArgMatches) -> Result<()> {
    let client = global.client().await?;
    let project = m.get_one::<String>("project").map(String::as_str);
    let mut everything = Vec::new();
    for kind in
        photon_api::registry().kinds().iter().filter(|k| project.is_none() || k.scope == Scope::Project)
    {
        let base = match project {
            Some(_) => list_path(kind, project)?,
            None => format!("/v1/{}", kind.plural),
        };
        let page = client.get(&format!("{base}?limit=1000")).await?;
        let items = page["items"].as_array().cloned().unwrap_or_default();
        if items.is_empty() {
            continue;
        }
        if matches!(global.output, Format::Table) {
            output::line(&format!("[{}]", kind.plural));
            show(global, kind, &items, false, project.is_none());
            output::line("");
        }
        everything.extend(items);
    }
    match global.output {
        Format::Table => {}
        Format::Name => everything.iter().for_each(|o| {
            let (k, n) =
                (o["kind"].as_str().unwrap_or_default(), o["meta"]["name"].as_str().unwrap_or_default());
            output::line(&format!("{k}/{n}"));
        }),
        f => output::value(f, &json!({ "kind": "list", "items": everything })),
    }
    client.keep_token(global).await;
    Ok(())
}

/// `photon explain KIND[.FIELD…]`.
pub fn explain(path: &str) -> Result<()> {
    let mut parts = path.split('.');
    let registry = photon_api::registry();
    let first = parts.next().unwrap_or_default();
    let kind = registry.kind(first).ok_or_else(|| {
        let known: Vec<&str> = registry.kinds().iter().map(|k| k.kind).collect();
        Error::new(Code::NotFound, format!("there is no kind {first:?}"))
            .hint(format!("one of: {}", known.join(", ")))
    })?;
    let mut schema = (kind.spec_schema)();
    for p in parts {
        let next = schema["properties"].get(p).or_else(|| schema["items"]["properties"].get(p)).cloned();
        schema =
            next.ok_or_else(|| Error::new(Code::NotFound, format!("{} has no field {p:?}", kind.kind)))?;
    }
    output::line(&format!("{path}: {}\n", schema["description"].as_str().unwrap_or_default()));
    let properties = schema["properties"].as_object().or_else(|| schema["items"]["properties"].as_object());
    let rows: Vec<Vec<String>> = properties
        .into_iter()
        .flatten()
        .map(|(name, s)| {
            let t = s["type"]
                .as_str()
                .map_or_else(|| s["type"][0].as_str().unwrap_or("value").to_string(), String::from);
            let required = schema["required"].as_array().is_some_and(|r| r.iter().any(|v| v == name));
            vec![
                name.clone(),
                t,
                if required { "required" } else { "" }.into(),
                s["description"].as_str().unwrap_or_default().into(),
            ]
        })
        .collect();
    let head = ["FIELD", "TYPE", "", "MEANING"].map(String::from).to_vec();
    print!("{}", output::aligned(head, rows));
    Ok(())
}
