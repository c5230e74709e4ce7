//! A TCP proxy that loses connections: at a point in the middle of what is said, now and then.

use photon_rt::{
    entropy::Rng,
    net::{TcpListener, TcpStream},
    task::Tasks,
};
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A listener before another.
pub struct Proxy {
    pub url: String,
    state: Arc<State>,
    _tasks: Tasks,
}

struct State {
    to: String,
    dice: Mutex<Rng>,
    /// Of a thousand pieces, this many are the last of their connection and do not arrive.
    losses: AtomicU64,
    cuts: AtomicU64,
}

impl Proxy {
    /// Before `url`, losing nothing yet.
    pub async fn before(url: &str, seed: u64) -> Proxy {
        let (scheme, to) = url.split_once("://").expect("a URL");
        let (scheme, to) = (scheme.to_string(), to.to_string());
        let socket = photon_rt::net::listen(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("loopback");
        let url = format!("{scheme}://{}", socket.local_addr().expect("address"));
        let dice = Mutex::new(Rng::new(seed));
        let state = Arc::new(State { to, dice, losses: AtomicU64::new(0), cuts: AtomicU64::new(0) });
        let tasks = Tasks::new();
        tasks.spawn("proxy", accept(socket, state.clone(), tasks.clone()));
        Proxy { url, state, _tasks: tasks }
    }

    /// From now on loses this many of a thousand pieces, and the connection with each; 1,000 is a dead endpoint.
    pub fn lose(&self, of_thousand: u64) {
        self.state.losses.store(of_thousand, Relaxed);
    }

    /// Connections cut so far.
    pub fn cuts(&self) -> u64 {
        self.state.cuts.load(Relaxed)
    }
}

async fn accept(socket: TcpListener, state: Arc<State>, tasks: Tasks) {
    while let Ok((client, _)) = socket.accept().await {
        let state = state.clone();
        tasks.spawn("proxied", async move {
            let Ok(server) = TcpStream::connect(&state.to).await else { return };
            let ((cr, cw), (sr, sw)) = (client.into_split(), server.into_split());
            tokio::select! {
                _ = pass(cr, sw, &state) => {}
                _ = pass(sr, cw, &state) => {}
            }
        });
    }
}

async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    state: &State,
) -> io::Result<()> {
    let mut buffer = vec![0; 4096];
    loop {
        let n = from.read(&mut buffer).await?;
        let lost = state.dice.lock().expect("dice").below(1000) < state.losses.load(Relaxed);
        if n == 0 || lost {
            state.cuts.fetch_add(u64::from(lost), Relaxed);
            return Ok(());
        }
        to.write_all(&buffer[..n]).await?;
    }
}
