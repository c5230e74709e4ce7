//! Who this cluster and this node are: authority, keys, certificates, credentials on disk.

use crate::config::Config;
use photon_auth::{Authority, CertPair, Leaf, TokenKey, password};
use photon_base::{Error, Result, Uid};
use photon_client::Profile;
use photon_rt::{fs, time::Duration, time::wall};
use serde::{Deserialize, Serialize};
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Where things lie in the data folder.
#[derive(Clone, Debug)]
pub struct Paths {
    root: PathBuf,
}

impl Paths {
    /// Below `root`.
    pub fn new(root: &Path) -> Paths {
        Paths { root: root.to_path_buf() }
    }
    /// A service's own folder.
    pub fn service(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }
    /// The cluster's identity.
    pub fn cluster(&self) -> PathBuf {
        self.root.join("cluster.json")
    }
    /// The authority.
    pub fn ca(&self) -> PathBuf {
        self.root.join("ca")
    }
    /// Credentials for people on this machine.
    pub fn creds(&self, file: &str) -> PathBuf {
        self.root.join("creds").join(file)
    }
}

#[derive(Serialize, Deserialize)]
struct Cluster {
    id: Uid,
}

/// The identity of the cluster whose state is in `paths`.
pub fn read_cluster(paths: &Paths) -> Result<Uid> {
    let text = fs::read_text(&paths.cluster(), 4096)?;
    let c: Cluster = serde_json::from_str(&text)
        .map_err(|e| Error::internal(format!("{} is damaged", paths.cluster().display())).why(e))?;
    Ok(c.id)
}

/// Keys of a running node.
pub struct Identity {
    pub authority: Authority,
    pub tokens: Arc<TokenKey>,
    pub server: CertPair,
}

/// Server certificates are renewed at half this.
pub const SERVER_VALID: Duration = Duration::from_secs(7 * 86400);
/// Certificates for tools on this machine, made anew at each start.
const TOOL_VALID: Duration = Duration::from_secs(90 * 86400);

impl Identity {
    /// Opens, or makes at first start, everything that proves who we are.
    pub fn open(config: &Config, paths: &Paths) -> Result<Identity> {
        if !paths.cluster().exists() {
            let c = Cluster { id: photon_rt::entropy::uid() };
            let text = serde_json::to_string(&c)
                .map_err(|e| Error::internal("cannot write the cluster's identity").why(e))?;
            fs::write_atomic(&paths.cluster(), text.as_bytes(), 0o600)?;
        }
        let cluster = read_cluster(paths)?.to_string();
        let authority = Authority::open(&paths.ca(), &cluster, wall())?;
        fs::private_dir(&paths.service("iam"))?;
        let tokens = Arc::new(TokenKey::open(&paths.service("iam").join("token.key"), &cluster)?);
        let server = server_certificate(&authority, config)?;
        fs::private_dir(&paths.service("creds"))?;
        let me = Identity { authority, tokens, server };
        me.write_tool_credentials(paths)?;
        Ok(me)
    }

    /// Certificates and bundles for etcdctl and curl on this machine.
    fn write_tool_credentials(&self, paths: &Paths) -> Result<()> {
        let ca = self.authority.cert_pem();
        fs::write_atomic(&paths.creds("ca.crt"), ca.as_bytes(), 0o644)?;
        let system = fs::read_to_string("/etc/ssl/certs/ca-certificates.crt").unwrap_or_default();
        fs::write_atomic(&paths.creds("ca-bundle.crt"), format!("{ca}{system}").as_bytes(), 0o644)?;
        let admin = photon_auth::Identity::user("admin".parse().expect("a literal label"));
        for (file, identity) in [("admin", admin), ("operator", photon_auth::Identity::operator())] {
            let leaf = Leaf { identity, dns: vec![], addresses: vec![], valid: TOOL_VALID };
            let pair = self.authority.issue(&leaf, wall())?;
            fs::write_atomic(&paths.creds(&format!("{file}.key")), pair.key_pem.as_bytes(), 0o600)?;
            fs::write_atomic(&paths.creds(&format!("{file}.crt")), pair.cert_pem.as_bytes(), 0o644)?;
        }
        Ok(())
    }

    /// The admin's profile for the command line; its password is drawn at first start. The endpoint
    /// follows the configuration.
    pub fn admin_profile(&self, config: &Config, paths: &Paths) -> Result<Profile> {
        let path = paths.creds("admin.json");
        let reach: IpAddr =
            if config.listen.is_unspecified() { IpAddr::from([127, 0, 0, 1]) } else { config.listen };
        let endpoint = format!("https://{}", std::net::SocketAddr::new(reach, config.port(8443)?));
        let old = if path.exists() { Some(Profile::load(&path)?) } else { None };
        let password = old.map_or_else(password::generate, |p| p.password);
        let profile =
            Profile { endpoint, ca: self.authority.cert_pem().to_string(), user: "admin".into(), password };
        profile.save(&path)?;
        Ok(profile)
    }
}

/// A certificate under which all listeners of this node answer.
pub fn server_certificate(authority: &Authority, config: &Config) -> Result<CertPair> {
    let mut addresses = vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])];
    if !addresses.contains(&config.listen) && !config.listen.is_unspecified() {
        addresses.push(config.listen);
    }
    let identity = photon_auth::Identity { kind: photon_auth::Kind::Host, name: config.node.clone() };
    let dns = vec!["localhost".into(), config.node.to_string()];
    authority.issue(&Leaf { identity, dns, addresses, valid: SERVER_VALID }, wall())
}
