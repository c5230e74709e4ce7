//! `photon vm console`: the terminal joined to a guest's serial line.

use futures::{SinkExt, StreamExt};
use photon_base::{Error, Result};
use photon_client::Client;
use photon_rt::{task::Tasks, time::Duration};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use std::io::{IsTerminal, Read, Write};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

/// Ctrl-].
const ESCAPE: u8 = 0x1d;
/// After the end of piped input, the console stays this long without output.
const QUIET: Duration = Duration::from_secs(2);

/// The terminal in raw mode; as it was when this value goes.
struct Raw(Termios);

impl Raw {
    fn enter() -> Option<Raw> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let old = tcgetattr(&stdin).ok()?;
        let mut raw = old.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
        Some(Raw(old))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0); // nothing left to do about it
    }
}

/// Joins this terminal to the console at `path` until Ctrl-] or the end of the line.
pub async fn attach(client: &Client, path: &str) -> Result<()> {
    let ws = client.websocket(path).await?;
    let raw = Raw::enter();
    if raw.is_some() {
        eprint!("connected; Ctrl-] leaves\r\n");
    }
    let (mut to_guest, mut from_guest) = ws.split();
    let (keys, mut typed) = mpsc::channel::<Vec<u8>>(16);
    // Reading a terminal blocks a thread; it ends with the process.
    photon_rt::task::thread("stdin", move || {
        let mut buffer = [0u8; 4096];
        while let Ok(n) = std::io::stdin().read(&mut buffer) {
            if n == 0 || keys.blocking_send(buffer[..n].to_vec()).is_err() {
                return;
            }
        }
    })
    .map_err(|e| Error::internal("cannot read the terminal").why(e))?;
    let _tasks = Tasks::new();
    let broke = |e: tokio_tungstenite::tungstenite::Error| Error::unavailable("the console broke off").why(e);
    let mut ended = false;
    loop {
        tokio::select! {
            input = typed.recv(), if !ended => match input {
                Some(bytes) => {
                    let leave = raw.is_some().then(|| bytes.iter().position(|b| *b == ESCAPE)).flatten();
                    let send = leave.map_or(&bytes[..], |i| &bytes[..i]);
                    to_guest.send(Message::Binary(send.to_vec().into())).await.map_err(broke)?;
                    if leave.is_some() {
                        break;
                    }
                }
                None => ended = true,
            },
            message = from_guest.next() => match message {
                Some(Ok(Message::Binary(b))) => print(&b),
                Some(Ok(Message::Text(t))) => print(t.as_bytes()),
                Some(Ok(Message::Close(_))) | None => break,
                Some(Ok(_)) => {}
                Some(Err(e)) => return Err(broke(e)),
            },
            () = photon_rt::time::sleep(QUIET), if ended => break,
        }
    }
    drop(raw);
    if std::io::stdin().is_terminal() {
        eprintln!("\nleft");
    }
    // The thread that reads the terminal can't be woken; nothing of it is needed any more.
    let _ = to_guest.close().await;
    Ok(())
}

fn print(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(bytes); // a reader that went away ends the session at its next key
    let _ = out.flush();
}
