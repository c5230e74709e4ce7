//! Who this cluster and this node are: authority, keys, certificates, credentials on disk.

use crate::config::Config;
use nodes::enrol::{Admission, Keys, Mate};
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
    /// Says where the records are, if not here.
    pub fn coordinator(&self) -> PathBuf {
        self.root.join("coordinator")
    }
    /// What time a revision of the store had.
    pub fn history(&self) -> PathBuf {
        let own = self.service("chainfire");
        if self.coordinator().exists() { self.root.join("history.json") } else { own.join("history.json") }
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

/// Which cloud this is, and how this node came to it.
#[derive(Serialize, Deserialize)]
pub struct Cluster {
    /// The cloud.
    pub id: Uid,
    /// Who let this node in; none for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joined: Option<Joined>,
}

/// Where the others were when this node came. Their own log and gossip tell later.
#[derive(Clone, Serialize, Deserialize)]
pub struct Joined {
    /// Members of the store.
    pub mates: Vec<Mate>,
    /// Where they gossip.
    pub gossip: Vec<String>,
}

/// The cloud whose state is in `paths`.
pub fn read_cluster(paths: &Paths) -> Result<Cluster> {
    let text = fs::read_text(&paths.cluster(), 1 << 20)?;
    serde_json::from_str(&text)
        .map_err(|e| Error::internal(format!("{} is damaged", paths.cluster().display())).why(e))
}

fn write_cluster(paths: &Paths, c: &Cluster) -> Result<()> {
    let text = serde_json::to_string(c)
        .map_err(|e| Error::internal("cannot write the cluster's identity").why(e))?;
    fs::write_atomic(&paths.cluster(), text.as_bytes(), 0o600)
}

/// Makes the folder of `paths` that of a node that was let in. The cloud's identity comes last: it marks completion.
pub fn adopt(paths: &Paths, a: &Admission) -> Result<()> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let bad = |e: &dyn std::fmt::Display| Error::internal("the admission cannot be used").why(e);
    let key = STANDARD.decode(&a.token_key).map_err(|e| bad(&e))?;
    if !paths.ca().join("ca.crt").exists() {
        let root = CertPair { cert_pem: a.authority.clone(), key_pem: a.authority_key.clone() };
        Authority::adopt(&paths.ca(), &root)?;
    }
    fs::private_dir(&paths.service("iam"))?;
    TokenKey::adopt(&token_key(paths), &key)?;
    chainfire::cluster::assign(&paths.service("chainfire"), a.member, a.store)?;
    let joined = Joined { mates: a.mates.clone(), gossip: a.gossip.clone() };
    write_cluster(paths, &Cluster { id: a.cluster, joined: Some(joined) })
}

/// Keys of a running node.
pub struct Identity {
    pub cluster: Cluster,
    pub authority: Authority,
    pub tokens: Arc<TokenKey>,
    pub server: CertPair,
}

fn token_key(paths: &Paths) -> PathBuf {
    paths.service("iam").join("token.key")
}

/// Server certificates are renewed at half this.
pub const SERVER_VALID: Duration = Duration::from_secs(7 * 86400);
/// Certificates for tools on this machine, made anew at each start.
const TOOL_VALID: Duration = Duration::from_secs(90 * 86400);

impl Identity {
    /// Opens, or makes at first start, everything that proves who we are.
    pub fn open(config: &Config, paths: &Paths) -> Result<Identity> {
        if !paths.cluster().exists() {
            write_cluster(paths, &Cluster { id: photon_rt::entropy::uid(), joined: None })?;
        }
        let cluster = read_cluster(paths)?;
        let name = cluster.id.to_string();
        let authority = Authority::open(&paths.ca(), &name, wall())?;
        fs::private_dir(&paths.service("iam"))?;
        let tokens = Arc::new(TokenKey::open(&token_key(paths), &name)?);
        let server = server_certificate(&authority, config)?;
        fs::private_dir(&paths.service("creds"))?;
        let me = Identity { cluster, authority, tokens, server };
        me.write_tool_credentials(paths)?;
        Ok(me)
    }

    /// What a node that joins is given.
    pub fn keys(&self, paths: &Paths) -> Result<Keys> {
        let tokens =
            fs::read(token_key(paths)).map_err(|e| Error::internal("the token key is away").why(e))?;
        Ok(Keys { cluster: self.cluster.id, authority: self.authority.root(), tokens })
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
        let endpoint = config.endpoint()?;
        let old = if path.exists() { Some(Profile::load(&path)?) } else { None };
        // The admin's password was drawn on the first node; on others the certificate proves who it is.
        let fresh = || if self.cluster.joined.is_some() { String::new() } else { password::generate() };
        let password = old.map_or_else(fresh, |p| p.password);
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
    let pair = authority.issue(&Leaf { identity, dns, addresses, valid: SERVER_VALID }, wall())?;
    // The authority is shown too: a machine that joins knows it by its fingerprint alone.
    Ok(CertPair { cert_pem: format!("{}{}", pair.cert_pem, authority.cert_pem()), ..pair })
}
