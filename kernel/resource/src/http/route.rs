//! The route table: method and path to a kind, a verb and a target. Pure.

use crate::{KindInfo, ListQuery, Registry, Scope, Selector};
use http::Method;
use photon_auth::{Target, Verb};
use photon_base::{Code, Cursor, Error, Name, Result};

/// What a request asks for.
pub struct Route {
    /// Kind.
    pub kind: KindInfo,
    /// Project from the path.
    pub project: Option<Name>,
    /// Name from the path.
    pub name: Option<Name>,
    /// Subresource from the path; then `verb` comes from the subresource.
    pub sub: Option<String>,
    /// Verb.
    pub verb: Verb,
    /// For lists and watches.
    pub list: ListQuery,
    /// For watches: the revision already seen.
    pub seen: u64,
    /// Decide and check everything, change nothing.
    pub dry_run: bool,
}

impl Route {
    /// What permission is needed on.
    pub fn target(&self) -> Target {
        Target { project: self.project.clone(), name: self.name.clone() }
    }
}

/// Reads a request line. Unknown kinds, parameters and methods are errors.
pub fn parse_route(registry: &Registry, method: &Method, path: &str, query: &str) -> Result<Route> {
    let nowhere = || Error::new(Code::NotFound, "there is nothing at this path").hint("see /openapi.json");
    let parts: Vec<&str> = path.strip_prefix("/v1/").ok_or_else(nowhere)?.split('/').collect();
    let (project, rest) = match parts.as_slice() {
        ["projects", project, rest @ ..] if !rest.is_empty() => {
            (Some(project.parse::<Name>().map_err(|e| e.within("project"))?), rest)
        }
        rest => (None, rest),
    };
    let (plural, name, sub) = match rest {
        [plural] => (*plural, None, None),
        [plural, name] => (*plural, Some(*name), None),
        [plural, name, sub] => (*plural, Some(*name), Some(sub.to_string())),
        _ => return Err(nowhere()),
    };
    let kind = registry.plural(plural)?.clone();
    let name = name.map(|n| n.parse::<Name>().map_err(|e| e.within("name"))).transpose()?;
    match (kind.scope, &project) {
        (Scope::Cluster, Some(_)) => {
            return Err(Error::new(Code::NotFound, format!("{} do not live in projects", kind.plural))
                .hint(format!("use /v1/{}", kind.plural)));
        }
        (Scope::Project, None) if name.is_some() || method != Method::GET => {
            return Err(Error::invalid("project", format!("{} live in projects", kind.plural))
                .hint(format!("use /v1/projects/PROJECT/{}", kind.plural)));
        }
        _ => {}
    }
    // A subresource reads its own parameters.
    let p = if sub.is_some() { Params::default() } else { Params::parse(query)? };
    let verb = match (method, name.is_some()) {
        // The subresource's own verb counts; see `http::handle`.
        _ if sub.is_some() => Verb::Get,
        (&Method::GET, false) if p.watch => Verb::Watch,
        (&Method::GET, false) => Verb::List,
        (&Method::POST, false) => Verb::Create,
        (&Method::GET, true) => Verb::Get,
        (&Method::PUT | &Method::PATCH, true) => Verb::Update,
        (&Method::DELETE, true) => Verb::Delete,
        _ => {
            return Err(
                Error::new(Code::Invalid, format!("{method} is not possible here")).hint("see /openapi.json")
            );
        }
    };
    let list = ListQuery { project: project.clone(), selector: p.selector, limit: p.limit, cursor: p.cursor };
    Ok(Route { kind, project, name, sub, verb, list, seen: p.revision, dry_run: p.dry_run })
}

#[derive(Default)]
struct Params {
    limit: u32,
    cursor: Option<Cursor>,
    selector: Selector,
    watch: bool,
    revision: u64,
    dry_run: bool,
}

impl Params {
    fn parse(query: &str) -> Result<Params> {
        let mut p = Params::default();
        let (mut labels, mut fields) = (String::new(), String::new());
        for pair in query.split('&').filter(|s| !s.is_empty()) {
            let (k, v) = pair.split_once('=').unwrap_or((pair, ""));
            let v = percent_decode(v).ok_or_else(|| Error::invalid(k, "is not percent-encoded UTF-8"))?;
            let number = |v: &str| v.parse::<u64>().map_err(|_| Error::invalid(k, "is not a whole number"));
            let flag = |v: &str| match v {
                "true" | "1" | "" => Ok(true),
                "false" | "0" => Ok(false),
                _ => Err(Error::invalid(k, "is neither true nor false")),
            };
            match k {
                "limit" => {
                    p.limit = u32::try_from(number(&v)?)
                        .ok()
                        .filter(|n| (1..=1000).contains(n))
                        .ok_or_else(|| Error::invalid("limit", "must lie between 1 and 1000"))?;
                }
                "cursor" => p.cursor = Some(Cursor::decode(&v)?),
                "labels" => labels = v,
                "fields" => fields = v,
                "watch" => p.watch = flag(&v)?,
                "revision" => p.revision = number(&v)?,
                "dryRun" => p.dry_run = flag(&v)?,
                _ => {
                    let shown: String = k.chars().take(40).collect();
                    return Err(Error::invalid(shown, "is not a parameter of this call")
                        .why("the parameters are limit, cursor, labels, fields, watch, revision, dryRun"));
                }
            }
        }
        p.selector = Selector::parse(&labels, &fields)?;
        Ok(p)
    }
}

/// `application/x-www-form-urlencoded` value to text.
fn percent_decode(s: &str) -> Option<String> {
    let mut out = Vec::with_capacity(s.len());
    let mut bytes = s.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'%' => {
                let hex = [bytes.next()?, bytes.next()?];
                out.push(u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?);
            }
            b'+' => out.push(b' '),
            b => out.push(b),
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::tests_support::registry;

    fn verb(method: &str, path: &str) -> Result<(String, Verb)> {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let r = parse_route(&registry(), &method.parse().expect("method"), path, query)?;
        Ok((format!("{}@{}", r.kind.kind, r.target()), r.verb))
    }

    #[test]
    fn each_route_has_one_action() {
        let ok = |m, p| verb(m, p).expect(p);
        assert_eq!(ok("GET", "/v1/widgets?limit=5"), ("widget@the cluster".into(), Verb::List));
        assert_eq!(
            ok("GET", "/v1/projects/p/widgets?watch=true&revision=3"),
            ("widget@project p".into(), Verb::Watch)
        );
        assert_eq!(ok("POST", "/v1/projects/p/widgets"), ("widget@project p".into(), Verb::Create));
        assert_eq!(ok("PATCH", "/v1/projects/p/widgets/a"), ("widget@p/a".into(), Verb::Update));
        assert_eq!(ok("DELETE", "/v1/projects/p"), ("project@p".into(), Verb::Delete));
        assert_eq!(ok("GET", "/v1/projects"), ("project@the cluster".into(), Verb::List));
    }

    #[test]
    fn everything_else_is_refused() {
        for (m, p) in [
            ("GET", "/v1/nothing"),
            ("POST", "/v1/widgets"),
            ("GET", "/v1/widgets/a"),
            ("GET", "/v1/projects/p/projects/x"),
            ("GET", "/v1/projects/P/widgets"),
            ("DELETE", "/v1/projects/p/widgets"),
            ("GET", "/v1/projects/p/widgets/a/b/c"),
            ("GET", "/v1/projects/p/widgets?limit=0"),
            ("GET", "/v1/projects/p/widgets?limit=x"),
            ("GET", "/v1/projects/p/widgets?cursor=x"),
            ("GET", "/v1/projects/p/widgets?colour=red"),
            ("GET", "/v1/projects/p/widgets?labels=%ff"),
            ("BREW", "/v1/projects/p/widgets"),
        ] {
            assert!(verb(m, p).is_err(), "{m} {p}");
        }
    }
}
