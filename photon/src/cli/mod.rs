//! The command line. Fixed commands are declared here; those of resource kinds (`photon vm list`) follow
//! from the registry.

mod apply;
mod chainfire;
mod console;
mod daemon;
mod doctor;
mod env;
mod etcd;
mod flaredb;
mod image;
mod import;
mod join;
mod kinds;
mod login;
mod metrics;
mod nightlight;
mod output;
mod serve;
mod status;
mod wait;

use crate::config::{Settings, data_dir};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use output::Format;
pub use output::line as say;
use photon_auth::CertPair;
use photon_base::{Code, Error, Result};
use photon_client::{Client, Credentials, Profile};
use std::{path::PathBuf, process::ExitCode};

/// A complete private cloud in one program.
#[derive(Parser)]
#[command(
    name = "photon",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "Start a cloud:  photon up --detach\nThen:           eval \"$(photon env)\"; photon project create demo\n\
                  Any kind:       photon KIND list|get|create|edit|delete|watch|explain"
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Args, Clone)]
pub struct Global {
    /// Folder of the cloud's state; client commands find endpoint and credentials there.
    #[arg(long, global = true, env = "PHOTON_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Credentials from `photon login` instead of the local admin's.
    #[arg(long, global = true, env = "PHOTON_PROFILE", value_name = "FILE")]
    profile: Option<PathBuf>,
    /// How to print: table, json, yaml or name.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Subcommand)]
enum Command {
    /// Start the cloud on this machine.
    ///
    /// Example: photon up --detach
    Up {
        #[command(flatten)]
        settings: Box<Settings>,
        /// File with settings, instead of DATA-DIR/photon.toml.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Go to the background; returns when the cloud is ready.
        #[arg(short, long)]
        detach: bool,
    },
    /// Make this machine a node of a cloud that there is, and start it.
    ///
    /// On a node of the cloud, photon node token prints the whole command. The cloud must listen on an address
    /// that this machine reaches: photon up --listen ADDRESS.
    ///
    /// Example: photon join 10.0.0.1 --token photon1-…
    Join(join::JoinArgs),
    /// Stop the cloud on this machine. VMs run on and are adopted at the next start.
    Down {
        /// Stop the VMs too; they start again with the cloud.
        #[arg(long)]
        vms: bool,
    },
    /// Show whether every service is ready.
    Status,
    /// Check this machine: kernel, virtualisation, ports, clock, disk. Prints the fix of what fails.
    Doctor,
    /// Print exports that make etcdctl, curl and others work with this cloud.
    ///
    /// Example: eval "$(photon env)"
    Env,
    /// Log in to a cloud elsewhere and keep the credentials in a profile.
    ///
    /// Example: photon login --endpoint https://10.0.0.1:8443 --ca ca.crt --user alice --save alice.json
    Login(login::LoginArgs),
    /// Make the objects of a file so: create what is missing, change what differs.
    ///
    /// Example: photon apply -f lab.yaml
    Apply(apply::ApplyArgs),
    /// Show who changed what, newest first.
    Audit {
        /// Most records, 1 to 1000.
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// Show the fields of a kind.
    ///
    /// Example: photon explain vm
    Explain {
        /// Kind, as in vm or vm.networks.
        kind: String,
    },
    /// Ask the cloud's metrics.
    #[command(subcommand)]
    Metrics(metrics::MetricsCommand),
    /// Run one service alone.
    #[command(subcommand)]
    Chainfire(serve::ChainfireCommand),
    /// Keys, transactions and regions of the distributed store.
    #[command(subcommand)]
    Flaredb(flaredb::FlaredbCommand),
    /// Run one service alone.
    #[command(subcommand)]
    Nightlight(nightlight::NightlightCommand),
    /// Print completion for a shell.
    ///
    /// Example: photon completion bash > /etc/bash_completion.d/photon
    Completion {
        /// Shell.
        shell: clap_complete::Shell,
    },
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let command = kinds::add_to(Cli::command(), &photon_api::registry());
    let mut words: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if etcd::is_name(&words) {
        words = match etcd::translate(&words) {
            Ok(etcd::Line::Serve(words)) => words,
            Ok(etcd::Line::Print(text)) => {
                output::line(&text);
                return ExitCode::SUCCESS;
            }
            Err(e) => return fail(&e, Format::Table),
        };
    }
    let matches = match command.clone().try_get_matches_from(words) {
        Ok(m) => m,
        Err(e) => {
            let code = e.exit_code();
            let _ = e.print(); // nobody left to tell
            return ExitCode::from(code as u8);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(r) => r,
        Err(e) => return fail(&Error::internal("cannot start").why(e), Format::Table),
    };
    let format = matches.get_one::<Format>("output").copied().unwrap_or(Format::Table);
    match runtime.block_on(run(command, &matches)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&e, format),
    }
}

fn fail(e: &Error, format: Format) -> ExitCode {
    if format == Format::Json {
        eprintln!("{}", serde_json::json!({ "error": e, "number": format!("PH{}", e.code.number()) }));
    } else {
        eprintln!("{}", e.report());
    }
    ExitCode::from(e.code.exit_code())
}

async fn run(command: clap::Command, matches: &clap::ArgMatches) -> Result<()> {
    let global = Global::from_arg_matches(matches).map_err(|e| Error::new(Code::Invalid, e.to_string()))?;
    if let Some((name, sub)) = matches.subcommand()
        && let Some(kind) = photon_api::registry().kind(name)
    {
        return Box::pin(kinds::run(&global, kind, sub)).await;
    }
    if let Some(("get", sub)) = matches.subcommand() {
        return Box::pin(kinds::get_all(&global, sub)).await;
    }
    let cli = Cli::from_arg_matches(matches).map_err(|e| Error::new(Code::Invalid, e.to_string()))?;
    match cli.command {
        Command::Up { settings, config, detach } => daemon::up(&global, *settings, config, detach).await,
        Command::Join(args) => Box::pin(join::join(&global, args)).await,
        Command::Down { vms } => daemon::down(&global, vms).await,
        Command::Status => status::status(&global).await,
        Command::Doctor => doctor::doctor(&global).await,
        Command::Env => env::env(&global),
        Command::Login(args) => login::login(args).await,
        Command::Apply(args) => Box::pin(apply::apply(&global, args)).await,
        Command::Audit { limit } => audit(&global, limit).await,
        Command::Explain { kind } => kinds::explain(&kind),
        Command::Metrics(c) => Box::pin(metrics::metrics(&global, c)).await,
        Command::Chainfire(c) => serve::chainfire(&global, c).await,
        Command::Flaredb(c) => Box::pin(flaredb::flaredb(&global, c)).await,
        Command::Nightlight(c) => nightlight::nightlight(&global, c).await,
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut command.clone(), "photon", &mut std::io::stdout());
            Ok(())
        }
    }
}

async fn audit(global: &Global, limit: u32) -> Result<()> {
    let client = global.client().await?;
    let list = client.get(&format!("/v1/audit?limit={}", limit.clamp(1, 1000))).await?;
    let columns = [
        ("TIME", "/at"),
        ("WHO", "/who"),
        ("ACTION", "/action"),
        ("TARGET", "/target"),
        ("BECAUSE", "/because"),
    ];
    let items = list["items"].as_array().cloned().unwrap_or_default();
    match global.output {
        Format::Table | Format::Name => output::table(&columns, &items),
        f => output::value(f, &list),
    }
    client.keep_token(global).await;
    Ok(())
}

impl Global {
    /// The folder of state.
    pub fn data_dir(&self) -> PathBuf {
        data_dir(self.data_dir.as_deref())
    }

    fn profile_path(&self) -> PathBuf {
        self.profile.clone().unwrap_or_else(|| self.data_dir().join("creds/admin.json"))
    }

    fn token_path(&self) -> PathBuf {
        self.profile_path().with_extension("token")
    }

    /// A client of the cloud that the profile names, with the token of last time if there is one.
    pub async fn client(&self) -> Result<Client> {
        let path = self.profile_path();
        let p = Profile::load(&path)?;
        let credentials = if p.password.is_empty() {
            // The local admin of a node that joined: its certificate lies beside the profile.
            let text = |ext: &str| photon_rt::fs::read_text(&path.with_extension(ext), 64 << 10);
            Credentials::Certificate(CertPair { cert_pem: text("crt")?, key_pem: text("key")? })
        } else {
            Credentials::Password { user: p.user, password: p.password }
        };
        let client = Client::new(&p.endpoint, &p.ca, credentials)?;
        if let Ok(token) = photon_rt::fs::read_text(&self.token_path(), 4096) {
            client.use_token(token).await;
        }
        Ok(client)
    }
}

/// Keeping a token for the next command saves a login, which costs 20 ms of CPU by design.
trait KeepToken {
    async fn keep_token(&self, global: &Global);
}

impl KeepToken for Client {
    async fn keep_token(&self, global: &Global) {
        let Some(token) = self.current_token().await else { return };
        let path = global.token_path();
        if photon_rt::fs::read_text(&path, 4096).is_ok_and(|t| t == token) {
            return;
        }
        // A folder that can't be written only costs the next command a login.
        let _ = photon_rt::fs::write_atomic(&path, token.as_bytes(), 0o600);
    }
}
