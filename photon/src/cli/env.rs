//! `photon env`: what ordinary tools need to work with this cloud.

use super::{Format, Global, output};
use crate::node::Paths;
use photon_base::{Error, Result};
use photon_client::Profile;
use serde_json::{Map, Value};

/// Prints exports for a shell, or JSON.
pub fn env(global: &Global) -> Result<()> {
    let dir = global.data_dir();
    let paths = Paths::new(&dir);
    let profile = Profile::load(&paths.creds("admin.json"))?;
    let uri: http::Uri =
        profile.door().parse().map_err(|e| Error::invalid("endpoint", "is not a URL").why(e))?;
    let (host, front) = (uri.host().unwrap_or("127.0.0.1"), uri.port_u16().unwrap_or(8443));
    let etcd = front - crate::services::FRONT.number + 2379;
    let file = |f: &str| paths.creds(f).display().to_string();
    let mut pairs = vec![
        ("PHOTON_DATA_DIR", dir.display().to_string()),
        ("PHOTON_ENDPOINT", profile.endpoint),
        ("ETCDCTL_API", "3".into()),
        ("ETCDCTL_ENDPOINTS", format!("https://{host}:{etcd}")),
        ("ETCDCTL_CACERT", file("ca.crt")),
        ("ETCDCTL_CERT", file("admin.crt")),
        ("ETCDCTL_KEY", file("admin.key")),
        ("SSL_CERT_FILE", file("ca-bundle.crt")),
        ("CURL_CA_BUNDLE", file("ca-bundle.crt")),
    ];
    if paths.coordinator().exists() {
        // The etcd there is somebody else's, and so are its credentials.
        pairs.retain(|(name, _)| !name.starts_with("ETCDCTL_"));
    }
    match global.output {
        Format::Json | Format::Yaml => {
            let map: Map<String, Value> = pairs.into_iter().map(|(k, v)| (k.to_string(), v.into())).collect();
            output::value(global.output, &Value::Object(map));
        }
        _ => pairs
            .iter()
            .for_each(|(k, v)| output::line(&format!("export {k}='{}'", v.replace('\'', "'\\''")))),
    }
    Ok(())
}
