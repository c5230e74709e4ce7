//! Prometheus' configuration file, as far as it concerns what is scraped, and where rules are: every key that we know does what it does
//! there, and every other is refused by its name.

use super::relabel::Rule;
use crate::{
    expose::negotiate::Protocol,
    labels::{Labels, Str},
    rules::notify::Alerting,
};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_yaml_ng::{Mapping, Value};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Largest file, bytes.
const FILE_MAX: u64 = 16 << 20;
/// Most jobs.
const JOBS_MAX: usize = 10_000;

/// A length of time in Prometheus' notation (`1m30s`), milliseconds, greater than 0.
pub(super) fn ms<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(d)?;
    match crate::promql::duration::parse(&text) {
        Ok(ms) if ms > 0 => Ok(Some(ms.unsigned_abs())),
        _ => Err(D::Error::custom(format!("not a valid duration: {text:?}"))),
    }
}

/// Bytes, with a unit of powers of 1024 (`10MB`); 0 is no limit.
fn size<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    let text = match Value::deserialize(d)? {
        Value::Number(n) => n.to_string(),
        Value::String(s) => s,
        _ => return Err(D::Error::custom("expected a size such as 10MB")),
    };
    let wrong = || D::Error::custom(format!("units: unknown unit in {text:?}"));
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let power = match text[digits.len()..].trim_end_matches('B').trim_end_matches('i') {
        "" => 0,
        "K" => 1,
        "M" => 2,
        "G" => 3,
        "T" => 4,
        _ => return Err(wrong()),
    };
    let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << (10 * power)));
    bytes.map(Some).ok_or_else(wrong)
}

/// Whether names of any alphabet are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Names {
    /// All of UTF-8.
    Utf8,
    /// Only the old alphabet.
    Legacy,
}

/// `global`, and what a job says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Global {
    #[serde(deserialize_with = "ms")]
    scrape_interval: Option<u64>,
    #[serde(deserialize_with = "ms")]
    scrape_timeout: Option<u64>,
    #[serde(deserialize_with = "ms")]
    evaluation_interval: Option<u64>,
    #[serde(deserialize_with = "ms")]
    rule_query_offset: Option<u64>,
    external_labels: BTreeMap<String, String>,
    scrape_protocols: Option<Vec<Protocol>>,
    #[serde(deserialize_with = "size")]
    body_size_limit: Option<u64>,
    sample_limit: u64,
    label_limit: u64,
    label_name_length_limit: u64,
    label_value_length_limit: u64,
    target_limit: u64,
    keep_dropped_targets: u64,
    metric_name_validation_scheme: Option<Names>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    global: Global,
    scrape_configs: Vec<Value>,
    scrape_config_files: Vec<String>,
    rule_files: Vec<PathBuf>,
    alerting: Value,
}

/// How a server is spoken to.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpClient {
    pub(super) basic_auth: Option<BasicAuth>,
    pub(super) authorization: Option<Authorization>,
    bearer_token: Option<String>,
    bearer_token_file: Option<PathBuf>,
    pub(super) tls_config: TlsConfig,
    pub(super) follow_redirects: Option<bool>,
    /// We speak HTTP/1.1 to targets, which every one of them does: allowing more changes nothing.
    #[serde(rename = "enable_http2")]
    _enable_http2: Option<bool>,
    #[serde(skip)]
    pub(super) trust: Trust,
}

/// TLS that was made elsewhere: how this cloud's own parts are asked.
#[derive(Clone, Debug, Default)]
pub struct Trust(pub Option<Arc<rustls::ClientConfig>>);

impl PartialEq for Trust {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        }
    }
}

pub(crate) const CLIENT_KEYS: [&str; 7] = [
    "basic_auth",
    "authorization",
    "bearer_token",
    "bearer_token_file",
    "tls_config",
    "follow_redirects",
    "enable_http2",
];

/// A user's name and password.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct BasicAuth {
    pub username: String,
    pub username_file: Option<PathBuf>,
    pub password: String,
    pub password_file: Option<PathBuf>,
}

/// `Authorization: TYPE CREDENTIALS`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Authorization {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub credentials: String,
    pub credentials_file: Option<PathBuf>,
}

/// Whom a server has to be signed by, and what it is shown.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TlsConfig {
    pub ca: Option<String>,
    pub ca_file: Option<PathBuf>,
    pub cert: Option<String>,
    pub cert_file: Option<PathBuf>,
    pub key: Option<String>,
    pub key_file: Option<PathBuf>,
    pub server_name: Option<String>,
    pub insecure_skip_verify: bool,
}

/// Targets, and labels for all of them.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Group {
    /// `HOST:PORT`
    pub targets: Vec<String>,
    /// For each of them.
    pub labels: BTreeMap<String, String>,
}

/// Files that list groups, as JSON or YAML.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileSd {
    pub files: Vec<PathBuf>,
    #[serde(default, deserialize_with = "ms")]
    pub refresh_interval: Option<u64>,
}

/// A server that lists groups.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct HttpSd {
    pub url: String,
    pub refresh_ms: u64,
    pub client: HttpClient,
}

/// Which records list targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[allow(missing_docs, clippy::upper_case_acronyms, reason = "they are the names of records")]
pub(super) enum Record {
    #[default]
    SRV,
    A,
    AAAA,
    MX,
    NS,
}

/// Names that list targets.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DnsSd {
    pub names: Vec<String>,
    #[serde(default, rename = "type")]
    pub record: Record,
    #[serde(default)]
    pub port: u16,
    #[serde(default, deserialize_with = "ms")]
    pub refresh_interval: Option<u64>,
}

/// One job as it is written, without what a client needs.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    job_name: String,
    #[serde(deserialize_with = "ms")]
    scrape_interval: Option<u64>,
    #[serde(deserialize_with = "ms")]
    scrape_timeout: Option<u64>,
    scrape_protocols: Option<Vec<Protocol>>,
    fallback_scrape_protocol: Option<Protocol>,
    metrics_path: Option<String>,
    scheme: Option<String>,
    params: BTreeMap<String, Vec<String>>,
    honor_labels: bool,
    honor_timestamps: Option<bool>,
    track_timestamps_staleness: bool,
    enable_compression: Option<bool>,
    #[serde(deserialize_with = "size")]
    body_size_limit: Option<u64>,
    sample_limit: Option<u64>,
    label_limit: Option<u64>,
    label_name_length_limit: Option<u64>,
    label_value_length_limit: Option<u64>,
    target_limit: Option<u64>,
    keep_dropped_targets: Option<u64>,
    metric_name_validation_scheme: Option<Names>,
    static_configs: Vec<Group>,
    file_sd_configs: Vec<FileSd>,
    http_sd_configs: Vec<Value>,
    dns_sd_configs: Vec<DnsSd>,
    relabel_configs: Vec<Rule>,
    metric_relabel_configs: Vec<Rule>,
}

/// One job, complete. Limits of 0 are none.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "they are Prometheus' keys")]
pub struct Job {
    pub name: String,
    pub interval_ms: u64,
    pub timeout_ms: u64,
    pub protocols: Vec<Protocol>,
    pub fallback: Option<Protocol>,
    pub path: String,
    pub scheme: String,
    pub params: BTreeMap<String, Vec<String>>,
    pub honor_labels: bool,
    pub honor_timestamps: bool,
    pub track_timestamps_staleness: bool,
    pub compression: bool,
    pub body_size_limit: u64,
    pub sample_limit: u64,
    pub label_limit: u64,
    pub label_name_length_limit: u64,
    pub label_value_length_limit: u64,
    pub target_limit: u64,
    pub keep_dropped_targets: u64,
    pub utf8: bool,
    pub relabel: Vec<Rule>,
    pub metric_relabel: Vec<Rule>,
    pub client: HttpClient,
    pub(super) groups: Vec<Group>,
    pub(super) files: Vec<FileSd>,
    pub(super) servers: Vec<HttpSd>,
    pub(super) names: Vec<DnsSd>,
    pub(super) provided: Provided,
}

/// Groups that somebody in this process knows, asked again and again.
pub type Provider = Arc<dyn Fn() -> Vec<Group> + Send + Sync>;

/// A [`Provider`], the same if it is the same one.
#[derive(Clone, Default)]
pub(super) struct Provided(pub Option<Provider>);

impl std::fmt::Debug for Provided {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Provided" } else { "-" })
    }
}

impl PartialEq for Provided {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        }
    }
}

impl Job {
    /// A job of this process: its targets come from `provider`, and TLS is `trust`.
    pub fn provided(
        name: &str,
        interval_ms: u64,
        trust: Arc<rustls::ClientConfig>,
        provider: Provider,
    ) -> Result<Self, String> {
        let written = format!("{{job_name: {name}, scheme: https, scrape_interval: {interval_ms}ms}}");
        let written: Value = serde_yaml_ng::from_str(&written).map_err(|e| e.to_string())?;
        let mut job = job(written, &Global::default(), Path::new("."))?;
        job.client.trust = Trust(Some(trust));
        job.provided = Provided(Some(provider));
        Ok(job)
    }
}

/// What is scraped.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// Jobs, each name once.
    pub jobs: Vec<Arc<Job>>,
    /// Labels that others see on everything from here.
    pub external: Labels,
    /// How often rules are evaluated, milliseconds.
    pub evaluation_ms: u64,
    /// How far back rules ask if their group does not say, milliseconds.
    pub rule_query_offset_ms: i64,
    /// Where rules are written; patterns.
    pub rule_files: Vec<PathBuf>,
    /// Who is told of alerts.
    pub alerting: Alerting,
    /// The file without its secrets.
    pub shown: String,
}

impl Config {
    /// Reads a file; paths in it are relative to it.
    pub fn load(path: &Path) -> Result<Self, String> {
        let text = photon_rt::fs::read_text(path, FILE_MAX).map_err(|e| e.to_string())?;
        let dir = path.parent().unwrap_or(Path::new("."));
        Self::parse(&text, dir).map_err(|e| format!("couldn't load configuration {}: {e}", path.display()))
    }

    /// Reads text; paths in it are relative to `dir`.
    pub fn parse(text: &str, dir: &Path) -> Result<Self, String> {
        let mut tree: Value = serde_yaml_ng::from_str(text).map_err(|e| e.to_string())?;
        if tree.is_null() {
            tree = Value::Mapping(Mapping::new());
        }
        let file: File = serde_yaml_ng::from_str(if text.trim().is_empty() { "{}" } else { text })
            .map_err(|e| e.to_string())?;
        if let Some(first) = file.scrape_config_files.first() {
            return Err(format!(
                "scrape_config_files ({first}) is not supported: list the jobs in scrape_configs"
            ));
        }
        if file.scrape_configs.len() > JOBS_MAX {
            return Err(format!("more than {JOBS_MAX} jobs"));
        }
        let (mut jobs, mut seen) = (Vec::new(), BTreeSet::new());
        for (i, written) in file.scrape_configs.into_iter().enumerate() {
            let name = written.get("job_name").and_then(Value::as_str).unwrap_or_default().to_string();
            let job = job(written, &file.global, dir)
                .map_err(|e| format!("scrape_configs[{i}] (job {name:?}): {e}"))?;
            if !seen.insert(job.name.clone()) {
                return Err(format!("found multiple scrape configs with job name {name:?}"));
            }
            jobs.push(Arc::new(job));
        }
        redact(&mut tree);
        let external = file.global.external_labels.into_iter();
        Ok(Config {
            jobs,
            external: Labels::new(external.map(|(n, v)| (Str::from(n), Str::from(v)))),
            evaluation_ms: file.global.evaluation_interval.unwrap_or(60_000),
            rule_query_offset_ms: file.global.rule_query_offset.unwrap_or(0) as i64,
            rule_files: file.rule_files.iter().map(|p| dir.join(p)).collect(),
            alerting: Alerting::parse(file.alerting, dir).map_err(|e| format!("alerting: {e}"))?,
            shown: serde_yaml_ng::to_string(&tree).map_err(|e| e.to_string())?,
        })
    }
}

/// Splits off what a client needs.
fn client(written: &mut Value, dir: &Path) -> Result<HttpClient, String> {
    let Value::Mapping(all) = written else { return Err("expected keys and values".into()) };
    let mut own = Mapping::new();
    for key in CLIENT_KEYS {
        if let Some(v) = all.shift_remove(key) {
            own.insert(key.into(), v);
        }
    }
    let mut c: HttpClient = serde_yaml_ng::from_value(Value::Mapping(own)).map_err(|e| e.to_string())?;
    let bearer = c.bearer_token.is_some() || c.bearer_token_file.is_some();
    if usize::from(bearer) + usize::from(c.basic_auth.is_some()) + usize::from(c.authorization.is_some()) > 1
    {
        return Err(
            "at most one of basic_auth, authorization, bearer_token & bearer_token_file must be configured"
                .into(),
        );
    }
    if bearer {
        let credentials = c.bearer_token.take().unwrap_or_default();
        let credentials_file = c.bearer_token_file.take();
        c.authorization = Some(Authorization { kind: None, credentials, credentials_file });
    }
    if c.tls_config.insecure_skip_verify {
        return Err(
            "insecure_skip_verify: whoever answers would be believed; name the authority by ca_file".into()
        );
    }
    let mut files: Vec<&mut Option<PathBuf>> = Vec::new();
    if let Some(b) = &mut c.basic_auth {
        files.extend([&mut b.username_file, &mut b.password_file]);
    }
    files.extend(c.authorization.as_mut().map(|a| &mut a.credentials_file));
    files.extend([&mut c.tls_config.ca_file, &mut c.tls_config.cert_file, &mut c.tls_config.key_file]);
    for file in files.into_iter().flatten() {
        *file = dir.join(&*file);
    }
    Ok(c)
}

pub(crate) fn job(mut written: Value, g: &Global, dir: &Path) -> Result<Job, String> {
    let client = client(&mut written, dir)?;
    let w: Written = serde_yaml_ng::from_value(written).map_err(|e| e.to_string())?;
    if w.job_name.is_empty() {
        return Err("job_name is empty".into());
    }
    let interval_ms = w.scrape_interval.or(g.scrape_interval).unwrap_or(60_000);
    let timeout_ms = w.scrape_timeout.or(g.scrape_timeout).unwrap_or(10_000.min(interval_ms));
    if w.scrape_timeout.is_some_and(|t| t > interval_ms) {
        return Err("scrape timeout greater than scrape interval".into());
    }
    let protocols = w.scrape_protocols.or_else(|| g.scrape_protocols.clone());
    let protocols = protocols.unwrap_or_else(|| Protocol::DEFAULT.to_vec());
    let twice = protocols.iter().enumerate().any(|(i, p)| protocols[..i].contains(p));
    if protocols.is_empty() || twice {
        return Err("scrape_protocols must name at least one form, and each once".into());
    }
    let scheme = w.scheme.unwrap_or_else(|| "http".into());
    if !matches!(scheme.as_str(), "http" | "https") {
        return Err(format!("scheme {scheme:?} is neither http nor https"));
    }
    let mut servers = Vec::new();
    for mut s in w.http_sd_configs {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Own {
            url: String,
            #[serde(default, deserialize_with = "ms")]
            refresh_interval: Option<u64>,
        }
        let client = self::client(&mut s, dir)?;
        let own: Own = serde_yaml_ng::from_value(s).map_err(|e| e.to_string())?;
        super::http::Url::parse(&own.url)?;
        servers.push(HttpSd { url: own.url, refresh_ms: own.refresh_interval.unwrap_or(60_000), client });
    }
    for d in &w.dns_sd_configs {
        if d.names.is_empty() {
            return Err("DNS-SD config must contain at least one SRV record name".into());
        }
        if d.record != Record::SRV && d.port == 0 {
            return Err("a port is required in DNS-SD configs for all record types except SRV".into());
        }
    }
    let mut files = w.file_sd_configs;
    for f in &mut files {
        f.files.iter_mut().for_each(|p| *p = dir.join(&*p));
        let known = |p: &PathBuf| p.extension().is_some_and(|e| e == "json" || e == "yml" || e == "yaml");
        if f.files.is_empty() || !f.files.iter().all(known) {
            return Err("file_sd_configs: files end in .json, .yml or .yaml".into());
        }
    }
    Ok(Job {
        name: w.job_name,
        interval_ms,
        timeout_ms: timeout_ms.min(interval_ms),
        protocols,
        fallback: w.fallback_scrape_protocol,
        path: w.metrics_path.unwrap_or_else(|| "/metrics".into()),
        scheme,
        params: w.params,
        honor_labels: w.honor_labels,
        honor_timestamps: w.honor_timestamps.unwrap_or(true),
        track_timestamps_staleness: w.track_timestamps_staleness,
        compression: w.enable_compression.unwrap_or(true),
        body_size_limit: w.body_size_limit.or(g.body_size_limit).unwrap_or(0),
        sample_limit: w.sample_limit.unwrap_or(g.sample_limit),
        label_limit: w.label_limit.unwrap_or(g.label_limit),
        label_name_length_limit: w.label_name_length_limit.unwrap_or(g.label_name_length_limit),
        label_value_length_limit: w.label_value_length_limit.unwrap_or(g.label_value_length_limit),
        target_limit: w.target_limit.unwrap_or(g.target_limit),
        keep_dropped_targets: w.keep_dropped_targets.unwrap_or(g.keep_dropped_targets),
        utf8: w.metric_name_validation_scheme.or(g.metric_name_validation_scheme) != Some(Names::Legacy),
        relabel: w.relabel_configs,
        metric_relabel: w.metric_relabel_configs,
        client,
        groups: w.static_configs,
        files,
        servers,
        names: w.dns_sd_configs,
        provided: Provided::default(),
    })
}

/// Takes secrets out of what people see.
fn redact(v: &mut Value) {
    match v {
        Value::Mapping(all) => {
            for (k, v) in all {
                match k.as_str() {
                    Some("password" | "credentials" | "bearer_token" | "key") => {
                        *v = Value::String("<secret>".into());
                    }
                    _ => redact(v),
                }
            }
        }
        Value::Sequence(all) => all.iter_mut().for_each(redact),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_takes_what_it_does_not_say_from_global() {
        let text = "
global: {scrape_interval: 15s, external_labels: {region: x}, sample_limit: 7}
scrape_configs:
- job_name: a
  scrape_timeout: 5s
  body_size_limit: 2MB
  params: {module: [http]}
  basic_auth: {username: u, password: s3cret}
  tls_config: {ca_file: ca.pem}
  static_configs: [{targets: ['h:1'], labels: {l: v}}]
  http_sd_configs: [{url: 'http://sd/x', authorization: {credentials: t0ken}}]
";
        let c = Config::parse(text, Path::new("/etc/x")).expect("valid");
        let j = &c.jobs[0];
        assert_eq!(
            (j.interval_ms, j.timeout_ms, j.sample_limit, j.body_size_limit),
            (15_000, 5_000, 7, 2 << 20)
        );
        assert_eq!(j.client.tls_config.ca_file.as_deref(), Some(Path::new("/etc/x/ca.pem")));
        assert_eq!(c.external.get("region"), "x");
        assert!(!c.shown.contains("s3cret") && !c.shown.contains("t0ken") && c.shown.contains("<secret>"));
        assert_eq!(Config::parse("", Path::new("/")).expect("empty").jobs.len(), 0);
    }

    #[test]
    fn what_is_unknown_or_wrong_is_named() {
        for (text, why) in [
            ("scrape_confgs: []", "scrape_confgs"),
            ("scrape_configs: [{job_name: a, sample_limt: 1}]", "sample_limt"),
            ("scrape_configs: [{job_name: a}, {job_name: a}]", "multiple scrape configs"),
            ("scrape_configs: [{job_name: a, basic_auth: {pasword: x}}]", "pasword"),
            ("scrape_configs: [{job_name: a, bearer_token: x, basic_auth: {username: x}}]", "at most one of"),
            ("scrape_configs: [{job_name: a, scrape_interval: 5s, scrape_timeout: 6s}]", "timeout greater"),
            (
                "scrape_configs: [{job_name: a, kubernetes_sd_configs: [{role: pod}]}]",
                "kubernetes_sd_configs",
            ),
            ("scrape_configs: [{job_name: a, tls_config: {insecure_skip_verify: true}}]", "ca_file"),
            ("scrape_configs: [{job_name: a, scrape_interval: soon}]", "not a valid duration"),
            ("scrape_configs: [{job_name: a, body_size_limit: 5XB}]", "unknown unit"),
            ("global: {scrape_intervl: 5s}", "scrape_intervl"),
            ("remote_write: [{url: 'http://x'}]", "remote_write"),
            ("scrape_configs: [{job_name: a, scrape_protocols: [Xml]}]", "Xml"),
        ] {
            let e = Config::parse(text, Path::new("/")).expect_err(text);
            assert!(e.contains(why), "{text}: {e}");
        }
    }
}
