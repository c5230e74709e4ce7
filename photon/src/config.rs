//! Configuration of a node: flag, else `PHOTON_…`, else the file, else the default. Unknown keys are errors.

use photon_base::{Error, Name, Result};
use serde::{Deserialize, Serialize};
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

/// Flags of `photon up`; each is a key of the file too (with `_` for `-`).
#[derive(Clone, Debug, Default, clap::Args, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Address to listen on.
    #[arg(long, env = "PHOTON_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<IpAddr>,
    /// Added to every port, so that several instances fit on one machine.
    #[arg(long, env = "PHOTON_PORT_OFFSET", value_name = "N")]
    pub port_offset: Option<u16>,
    /// Name of this host in the cluster.
    #[arg(long, env = "PHOTON_NODE", value_name = "NAME")]
    pub node: Option<Name>,
    /// What to log: error, warn, info, debug, trace, or a filter such as `info,plasmavmc=debug`.
    #[arg(long, env = "PHOTON_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// Folder of the built-in guest image (made by `./dev guest`).
    #[arg(long, env = "PHOTON_GUEST_DIR", value_name = "DIR")]
    pub guest_dir: Option<PathBuf>,
    /// Networks for VMs: `host` needs root and gives networks of their own; `user` needs nothing and
    /// keeps every VM alone; `auto` takes what is possible.
    #[arg(long, env = "PHOTON_NETWORKING", value_name = "MODE")]
    pub networking: Option<Networking>,
    /// Keep the cloud's records in this etcd cluster instead of a ChainFire of its own. Whoever can read that
    /// etcd can read the cloud. For `https://` say also --coordinator-ca.
    #[arg(long, env = "PHOTON_COORDINATOR", value_name = "URL[,URL…]")]
    pub coordinator: Option<String>,
    /// The authority of the etcd servers' certificates (PEM).
    #[arg(long, env = "PHOTON_COORDINATOR_CA", value_name = "FILE")]
    pub coordinator_ca: Option<PathBuf>,
    /// A certificate to show them (PEM).
    #[arg(long, env = "PHOTON_COORDINATOR_CERT", value_name = "FILE")]
    pub coordinator_cert: Option<PathBuf>,
    /// Its key.
    #[arg(long, env = "PHOTON_COORDINATOR_KEY", value_name = "FILE")]
    pub coordinator_key: Option<PathBuf>,
    /// File with USER:PASSWORD of etcd's own users.
    #[arg(long, env = "PHOTON_COORDINATOR_LOGIN", value_name = "FILE")]
    pub coordinator_login: Option<PathBuf>,
}

/// How VMs are connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Networking {
    /// Host networking for root, else user mode.
    #[default]
    Auto,
    /// Namespaces, bridges and address translation.
    Host,
    /// QEMU's user mode.
    User,
}

/// A node's configuration, complete.
#[derive(Clone, Debug)]
pub struct Config {
    /// Folder of all state.
    pub data_dir: PathBuf,
    /// Address to listen on.
    pub listen: IpAddr,
    /// Added to every port.
    pub port_offset: u16,
    /// Name of this host.
    pub node: Name,
    /// Log filter.
    pub log: String,
    /// Folder of the built-in guest image.
    pub guest_dir: Option<PathBuf>,
    /// Networks for VMs.
    pub networking: Networking,
    /// The etcd cluster that holds the records, if it is not this node's own store.
    pub coordinator: Option<photon_etcd::Config>,
}

/// True for root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// `--data-dir`, or where state lives by default: `/var/lib/photon` for root, else below the home folder.
pub fn data_dir(flag: Option<&Path>) -> PathBuf {
    match flag {
        Some(d) => d.to_path_buf(),
        None if is_root() => "/var/lib/photon".into(),
        None => std::env::var_os("XDG_DATA_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".local/share")))
            .unwrap_or_else(|| ".".into())
            .join("photon"),
    }
}

fn host_name() -> Option<Name> {
    let uname = rustix::system::uname();
    let text: String = uname
        .nodename()
        .to_string_lossy()
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(Name::LEN_MAX)
        .collect();
    text.trim_matches('-').parse().ok()
}

impl Config {
    /// Joins flags (with environment), file and defaults.
    pub fn load(data_dir: PathBuf, file: Option<&Path>, flags: Settings) -> Result<Config> {
        let default_file = data_dir.join("photon.toml");
        let from_file = match file {
            Some(f) => read(f)?,
            None if default_file.exists() => read(&default_file)?,
            None => Settings::default(),
        };
        let listen = flags.listen.or(from_file.listen).unwrap_or(IpAddr::from([127, 0, 0, 1]));
        let coordinator = coordinator(&flags, &from_file)?;
        let node = flags.node.or(from_file.node).or_else(host_name);
        Ok(Config {
            coordinator,
            data_dir,
            listen,
            port_offset: flags.port_offset.or(from_file.port_offset).unwrap_or(0),
            node: node.unwrap_or_else(|| "node-1".parse().expect("a literal label")),
            log: flags.log.or(from_file.log).unwrap_or_else(|| "info".into()),
            guest_dir: flags.guest_dir.or(from_file.guest_dir),
            networking: flags.networking.or(from_file.networking).unwrap_or_default(),
        })
    }

    /// The address under which others reach this node.
    pub fn reach(&self) -> IpAddr {
        if self.listen.is_unspecified() { IpAddr::from([127, 0, 0, 1]) } else { self.listen }
    }

    /// The front door.
    pub fn endpoint(&self) -> Result<String> {
        Ok(format!("https://{}", std::net::SocketAddr::new(self.reach(), self.port(8443)?)))
    }

    /// The number that a port really has here.
    pub fn port(&self, number: u16) -> Result<u16> {
        number.checked_add(self.port_offset).ok_or_else(|| {
            Error::invalid("port-offset", format!("{} moves port {number} beyond 65535", self.port_offset))
        })
    }
}

impl Settings {
    /// Where a node is and what it is called stays so at the next start, if people said it by flags and have no
    /// file: the other nodes look for it there.
    pub fn remember(&self, data_dir: &Path) -> Result<()> {
        if self.listen.is_none() || data_dir.join("photon.toml").exists() {
            return Ok(());
        }
        let (listen, port_offset, node) = (self.listen, self.port_offset, self.node.clone());
        Settings { listen, port_offset, node, ..Settings::default() }.save(data_dir)
    }

    /// Writes them where the next start finds them.
    pub fn save(&self, data_dir: &Path) -> Result<()> {
        let text = toml::to_string(self).map_err(|e| Error::internal("settings can't be written").why(e))?;
        photon_rt::fs::write_atomic(&data_dir.join("photon.toml"), text.as_bytes(), 0o600)
    }
}

fn coordinator(flags: &Settings, file: &Settings) -> Result<Option<photon_etcd::Config>> {
    let path = |get: fn(&Settings) -> &Option<PathBuf>| get(flags).as_deref().or(get(file).as_deref());
    let files = photon_etcd::config::Files {
        ca: path(|s| &s.coordinator_ca),
        cert: path(|s| &s.coordinator_cert),
        key: path(|s| &s.coordinator_key),
        login: path(|s| &s.coordinator_login),
    };
    let Some(urls) = flags.coordinator.as_ref().or(file.coordinator.as_ref()) else { return Ok(None) };
    let named = |e: Error| Error { field: e.field.map(|f| format!("coordinator-{f}")), ..e };
    photon_etcd::Config::with_files(urls, &files).map(Some).map_err(named)
}

fn read(path: &Path) -> Result<Settings> {
    let text = photon_rt::fs::read_text(path, 1 << 20)?;
    toml::from_str(&text).map_err(|e| {
        Error::invalid(path.display().to_string(), "cannot be used")
            .why(e.message().to_string())
            .hint("see: photon up --help")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_file_and_unknown_keys_are_errors() {
        let dir = std::env::temp_dir().join(format!("photon-config-{:x}", photon_rt::entropy::u64()));
        photon_rt::fs::private_dir(&dir).expect("dir");
        let file = dir.join("photon.toml");
        photon_rt::fs::write_atomic(&file, b"port_offset = 5\nnode = \"n1\"\n", 0o600).expect("write");
        let flags = Settings { port_offset: Some(7), ..Settings::default() };
        let c = Config::load(dir.clone(), None, flags).expect("load");
        assert_eq!((c.port_offset, c.node.as_str()), (7, "n1"));
        assert_eq!(c.port(8443).expect("port"), 8450);
        photon_rt::fs::write_atomic(&file, b"port_ofset = 5\n", 0o600).expect("write");
        let e = Config::load(dir.clone(), None, Settings::default()).expect_err("unknown key");
        assert!(e.to_string().contains("port_ofset"), "{e}");
        photon_rt::fs::remove_dir_all(&dir).expect("clean");
    }
}
