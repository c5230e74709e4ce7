//! Where targets are found: in the configuration, in files, at servers, in names, and in this process. A source that
//! fails keeps what it found last.

use super::{
    config::{DnsSd, FileSd, Group, HttpSd, Job, Provider, Record},
    dns,
    http::{Ask, Link, Url},
};
use photon_rt::{
    fs,
    task::{Tasks, blocking},
    time::{Duration, Instant, now, timeout},
};
use std::path::{Path, PathBuf};

/// Largest list, bytes, and most targets of one source.
const LIST_MAX: u64 = 32 << 20;
const TARGETS_MAX: usize = 100_000;
/// Most files of one pattern.
const FILES_MAX: usize = 1000;
/// How often files are looked at: there is no waiting for Prometheus' five minutes, which it has its watches for.
const FILE_LOOK_MS: u64 = 2_000;
/// How often this process is asked.
const OWN_LOOK_MS: u64 = 1_000;
/// Time for a list from a server.
const LIST_TIME_MAX: Duration = Duration::from_secs(20);

enum Kind {
    Static(Vec<Group>),
    Files(FileSd),
    Server(Box<HttpSd>),
    Names(DnsSd),
    Own(Provider),
}

struct Source {
    kind: Kind,
    found: Vec<Group>,
    due: Instant,
}

/// All sources of a job.
pub(crate) struct Sources(Vec<Source>);

impl Sources {
    pub fn new(job: &Job) -> Self {
        let mut kinds = vec![Kind::Static(job.groups.clone())];
        kinds.extend(job.files.iter().cloned().map(Kind::Files));
        kinds.extend(job.servers.iter().cloned().map(|s| Kind::Server(Box::new(s))));
        kinds.extend(job.names.iter().cloned().map(Kind::Names));
        kinds.extend(job.provided.0.iter().cloned().map(Kind::Own));
        Sources(kinds.into_iter().map(|kind| Source { kind, found: Vec::new(), due: now() }).collect())
    }

    /// Knows what those before it knew of the same sources, until they answer again.
    pub fn after(mut self, before: Option<Sources>) -> Self {
        let mut before = before.map(|s| s.0).unwrap_or_default();
        let same = |a: &Kind, b: &Kind| match (a, b) {
            (Kind::Files(a), Kind::Files(b)) => a == b,
            (Kind::Server(a), Kind::Server(b)) => a == b,
            (Kind::Names(a), Kind::Names(b)) => a == b,
            _ => false, // these never fail
        };
        for s in &mut self.0 {
            if let Some(b) = before.iter_mut().find(|b| same(&b.kind, &s.kind)) {
                s.found = std::mem::take(&mut b.found);
            }
        }
        self
    }

    /// Asks those whose time has come; then all that is known.
    pub async fn refresh(&mut self, tasks: &Tasks) -> Vec<Group> {
        for s in &mut self.0 {
            if s.due > now() {
                continue;
            }
            let (found, again_ms) = match &s.kind {
                Kind::Static(groups) => (Ok(groups.clone()), u64::from(u32::MAX)),
                Kind::Files(f) => {
                    let patterns = f.files.clone();
                    let wait = f.refresh_interval.unwrap_or(FILE_LOOK_MS).min(FILE_LOOK_MS);
                    (blocking(move || files(&patterns)).await, wait)
                }
                Kind::Server(h) => (server(h, tasks).await, h.refresh_ms),
                Kind::Names(d) => (names(d).await, d.refresh_interval.unwrap_or(30_000)),
                Kind::Own(provider) => (Ok(provider()), OWN_LOOK_MS),
            };
            s.due = now() + Duration::from_millis(again_ms);
            match found {
                Ok(found) if found.iter().map(|g| g.targets.len()).sum::<usize>() > TARGETS_MAX => {
                    tracing::error!(
                        "a source lists more than {TARGETS_MAX} targets; keeping what it listed before"
                    );
                }
                Ok(found) => s.found = found,
                Err(e) => {
                    tracing::warn!(error = e, "a source of targets failed; keeping what it found before")
                }
            }
        }
        self.0.iter().flat_map(|s| s.found.clone()).collect()
    }

    /// When the next one has to be asked.
    pub fn due(&self) -> Instant {
        self.0.iter().map(|s| s.due).min().unwrap_or_else(now)
    }
}

fn with(mut groups: Vec<Group>, name: &str, value: &str) -> Vec<Group> {
    for g in &mut groups {
        g.labels.insert(name.into(), value.into());
    }
    groups
}

/// The files that a pattern means: `*` stands for any part of a file's name.
pub(crate) fn matching(pattern: &Path) -> Vec<PathBuf> {
    let name = pattern.file_name().unwrap_or_default().to_string_lossy();
    if !name.contains('*') {
        return vec![pattern.to_path_buf()];
    }
    let parts: Vec<String> = name.split('*').map(regex::escape).collect();
    let Ok(wanted) = regex::Regex::new(&format!("^{}$", parts.join(".*"))) else { return Vec::new() };
    let entries = fs::read_dir(pattern.parent().unwrap_or(Path::new("."))).into_iter().flatten().flatten();
    let mut all: Vec<PathBuf> =
        entries.filter(|e| wanted.is_match(&e.file_name().to_string_lossy())).map(|e| e.path()).collect();
    all.sort();
    all.truncate(FILES_MAX);
    all
}

fn files(patterns: &[PathBuf]) -> Result<Vec<Group>, String> {
    let mut out = Vec::new();
    for path in patterns.iter().flat_map(|p| matching(p)) {
        let text = fs::read_text(&path, LIST_MAX).map_err(|e| e.to_string())?;
        let groups: Vec<Group> =
            serde_yaml_ng::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?;
        out.extend(with(groups, "__meta_filepath", &path.display().to_string()));
    }
    Ok(out)
}

async fn server(h: &HttpSd, tasks: &Tasks) -> Result<Vec<Group>, String> {
    let url = Url::parse(&h.url)?;
    let ask = Ask {
        accept: "application/json",
        timeout_s: h.refresh_ms as f64 / 1000.0,
        body_max: LIST_MAX,
        compression: true,
        post: None,
    };
    let mut link = Link::default();
    let page =
        timeout(LIST_TIME_MAX, "the list of targets", h.client.get(&url, &ask, &mut link, tasks)).await;
    let page = page.map_err(|e| e.to_string())??;
    if !page.content_type.as_deref().is_some_and(|t| t.starts_with("application/json")) {
        return Err(format!("unsupported content type {:?} of {url}", page.content_type.unwrap_or_default()));
    }
    let groups: Vec<Group> = serde_json::from_slice(&page.body).map_err(|e| format!("{url}: {e}"))?;
    Ok(with(groups, "__meta_url", &h.url))
}

async fn names(d: &DnsSd) -> Result<Vec<Group>, String> {
    let mut out = Vec::new();
    for name in &d.names {
        for found in dns::lookup(name, d.record).await? {
            let port = found.port.unwrap_or(d.port);
            let host = found.host.trim_end_matches('.');
            let address =
                if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
            let mut g = Group { targets: vec![address], ..Group::default() };
            let meta = match d.record {
                Record::SRV => Some("srv"),
                Record::MX => Some("mx"),
                Record::NS => Some("ns"),
                Record::A | Record::AAAA => None,
            };
            if let Some(meta) = meta {
                g.labels.insert(format!("__meta_dns_{meta}_record_target"), found.host.clone());
            }
            if d.record == Record::SRV {
                g.labels.insert("__meta_dns_srv_record_port".into(), port.to_string());
            }
            out.extend(with(vec![g], "__meta_dns_name", name));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_by_pattern_and_a_broken_one_is_an_error() {
        let dir = tempfile::tempdir().expect("folder");
        let write = |name: &str, text: &str| {
            photon_rt::fs::write_atomic(&dir.path().join(name), text.as_bytes(), 0o600).expect("write");
        };
        write("a.json", r#"[{"targets": ["h:1"], "labels": {"l": "v"}}]"#);
        write("b.yml", "- targets: ['h:2']\n");
        write("c.txt", "no list");
        let all = files(&[dir.path().join("*.json"), dir.path().join("b.yml")]).expect("lists");
        let targets: Vec<&str> = all.iter().flat_map(|g| &g.targets).map(String::as_str).collect();
        assert_eq!(targets, ["h:1", "h:2"]);
        assert!(all[0].labels["__meta_filepath"].ends_with("a.json"));
        write("d.json", "[{\"targts\": []}]");
        let e = files(&[dir.path().join("*.json")]).expect_err("broken");
        assert!(e.contains("d.json") && e.contains("targts"), "{e}");
        assert!(
            files(&[dir.path().join("none.json")]).is_err(),
            "a named file that is away keeps the old list"
        );
    }
}
