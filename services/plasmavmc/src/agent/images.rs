//! Images on this host: one folder each, complete when `ready.json` is there.

use super::{HostAgent, disks};
use crate::engine;
use async_trait::async_trait;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use photon_api::{HostSpec, ImageFormat, ImageSpec, set_condition};
use photon_auth::Authorized;
use photon_base::{Bytes, Code, Error, Name, Result, Uid};
use photon_reconcile::{Context, Next, Poke, Reconcile};
use photon_resource::{Key, Object, Store, http::Connect};
use photon_rt::{fs, task::blocking, time::wall};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Keeps an image until its files are gone.
const FINALIZER: &str = "plasmavmc-agent";
/// Largest upload.
const UPLOAD_BYTES_MAX: u64 = 256 << 30;

/// What is known of complete content.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Ready {
    sha256: String,
    size: Bytes,
    /// Kernel command line, for kernel images.
    #[serde(default)]
    cmdline: String,
}

/// The images of a host.
#[derive(Clone)]
pub struct Images {
    host: Name,
    dir: PathBuf,
    /// Held while content is checked, converted and declared complete: one at a time.
    finishing: Arc<tokio::sync::Mutex<()>>,
}

impl Images {
    /// Below the agent's folder.
    pub fn new(agent: &HostAgent) -> Images {
        Images { host: agent.host().clone(), dir: agent.dir().join("images"), finishing: Arc::default() }
    }

    fn folder(&self, id: Uid) -> PathBuf {
        self.dir.join(id.to_string())
    }

    fn ready(&self, id: Uid) -> Option<Ready> {
        let text = fs::read_text(&self.folder(id).join("ready.json"), 64 << 10).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// The folder of complete content.
    pub fn content(&self, id: Uid) -> Option<PathBuf> {
        self.ready(id).map(|_| self.folder(id))
    }

    /// The command line of a kernel image.
    pub fn cmdline(&self, id: Uid) -> Result<String> {
        self.ready(id).map(|r| r.cmdline).ok_or_else(|| Error::unavailable("the image is not on this host"))
    }

    fn finish(&self, id: Uid, ready: &Ready) -> Result<()> {
        let text = serde_json::to_string(ready)
            .map_err(|e| Error::internal("cannot write an image's record").why(e))?;
        fs::write_atomic(&self.folder(id).join("ready.json"), text.as_bytes(), 0o600)
    }

    /// Makes the image `tiny` of the guest that was built into `source`, at the first start that finds
    /// one. An admin may delete it; it does not come back by itself.
    pub async fn ensure_builtin(&self, store: &Store, source: &Path) -> Result<()> {
        let marker = self.dir.join("tiny-imported");
        if marker.exists() {
            return Ok(());
        }
        let text = fs::read_text(&source.join("manifest.json"), 1 << 20)?;
        let manifest: serde_json::Value = serde_json::from_str(&text)
            .map_err(|e| Error::internal("the guest's manifest is damaged").why(e))?;
        let name: Name = "tiny".parse()?;
        let image = match store.get::<ImageSpec>(None, &name).await? {
            Some(i) => i.meta.id,
            None => {
                let spec = ImageSpec {
                    format: ImageFormat::Kernel,
                    description: "a tiny Linux, for trying things out".into(),
                    min_memory: Bytes::mib(96),
                };
                store.acting_as("plasmavmc-images").make("image", "tiny", &spec).await?.meta.id
            }
        };
        let folder = self.folder(image);
        fs::private_dir(&folder)?;
        let mut size = 0;
        let mut digest = Sha256::new();
        for file in ["vmlinux", "initrd"] {
            let from = source.join(file);
            let data = blocking(move || fs::read(from))
                .await
                .map_err(|e| Error::internal(format!("the guest's {file} can't be read")).why(e))?;
            size += data.len() as u64;
            digest.update(&data);
            let to = folder.join(file);
            blocking(move || fs::write_atomic(&to, &data, 0o600)).await?;
        }
        let cmdline = manifest["cmdline"].as_str().unwrap_or("console=ttyS0").to_string();
        self.finish(image, &Ready { sha256: hex(digest), size: Bytes(size), cmdline })?;
        fs::write_atomic(&marker, b"", 0o600)
    }
}

/// Reports images and removes those that go.
pub struct ImageKeeper(pub Images);

#[async_trait]
impl Reconcile for ImageKeeper {
    type Kind = ImageSpec;

    fn name(&self) -> &'static str {
        "plasmavmc-images"
    }

    async fn reconcile(&self, cx: &Context, key: &Key) -> Result<Next> {
        let Some(image) = cx.get::<ImageSpec>(None, &key.name)? else { return Ok(Next::Done) };
        let mut tx = cx.begin();
        let me = &self.0.host;
        let mut s = image.status.clone();
        if !image.is_wanted() {
            // Each host removes what it holds; the last one lets the record go.
            if image.has_finalizer(FINALIZER) && (s.hosts.is_empty() || s.hosts.contains(me)) {
                disks::remove(self.0.folder(image.meta.id)).await?;
                let change = |i: &mut Object<ImageSpec>| {
                    i.status.hosts.retain(|h| h != me);
                    if i.status.hosts.is_empty() {
                        i.meta.finalizers.retain(|f| f != FINALIZER);
                    }
                };
                tx.update(&image, change).await?;
                tx.commit().await?;
            }
            return Ok(Next::Done);
        }
        s.observed_generation = image.meta.generation;
        // Hosts that were removed hold nothing any more.
        let there = |h: &Name| cx.get::<HostSpec>(None, h).is_ok_and(|found| found.is_some());
        s.hosts.retain(|h| h != me && there(h));
        match self.0.ready(image.meta.id) {
            Some(r) => {
                s.hosts.push(me.clone());
                s.hosts.sort();
                (s.phase, s.sha256, s.size) = ("ready".into(), r.sha256, r.size);
                set_condition(&mut s.conditions, "Ready", true, "Imported", "", wall());
            }
            None if !s.hosts.is_empty() => {} // others hold it
            None if s.phase != "failed" => {
                s.phase = "pending".into();
                let how = "it waits for its content: photon image import FILE --name NAME";
                set_condition(&mut s.conditions, "Ready", false, "NoContent", how, wall());
            }
            None => {}
        }
        if s != image.status {
            tx.update(&image, |i| i.status = s).await?;
            tx.commit().await?;
        }
        Ok(Next::Done)
    }
}

/// `PUT /v1/images/{name}/content`: the bytes of a raw or qcow2 file.
pub struct ContentRoute {
    /// Where they go.
    pub images: Images,
    /// The record of the image.
    pub store: Store,
    /// Told when the image is complete.
    pub poke: Poke,
}

#[async_trait]
impl Connect for ContentRoute {
    async fn connect(&self, who: Authorized, request: axum::extract::Request) -> Result<Response> {
        if request.method() != http::Method::PUT {
            return Err(Error::new(Code::Invalid, "content is sent by PUT"));
        }
        let name = who.target().name.clone().ok_or_else(|| Error::internal("content without an image"))?;
        let key = Key::new("image", None, name.clone());
        let image = self.store.get::<ImageSpec>(None, &name).await?.ok_or_else(|| Error::not_found(&key))?;
        let format = match image.spec.format {
            ImageFormat::Raw => engine::Format::Raw,
            ImageFormat::Qcow2 => engine::Format::Qcow2,
            ImageFormat::Kernel => return Err(Error::new(Code::Unsupported, "kernel images are built in")),
        };
        if self.images.ready(image.meta.id).is_some() {
            return Err(Error::new(Code::Exists, format!("{key} has its content")).hint("make a new image"));
        }
        let folder = self.images.folder(image.meta.id);
        fs::private_dir(&folder)?;
        // A name of its own for each try: two uploads at once do not mix, and the first complete one wins.
        let upload = Upload(folder.join(format!("upload-{:x}", photon_rt::entropy::u64())));
        let received = receive(&upload.0, request).await;
        let _one = self.images.finishing.lock().await;
        if self.images.ready(image.meta.id).is_some() {
            return Err(Error::new(Code::Exists, format!("{key} has its content")).hint("make a new image"));
        }
        let outcome = match received {
            Ok(sha256) => engine::image::import(
                &upload.0,
                format,
                &folder.join("disk.raw"),
                engine::image::Limits::default(),
            )
            .await
            .map(|size| (sha256, size)),
            Err(e) => Err(e),
        };
        let (sha256, size) = match outcome {
            Ok(o) => o,
            Err(e) => {
                self.note_failure(&name, &e).await;
                return Err(e);
            }
        };
        // The record first: no content without one, wherever a crash comes.
        let mut tx = self.store.begin_for(&who);
        tx.note(&key, image.meta.id, "content");
        tx.commit().await?;
        self.images.finish(image.meta.id, &Ready { sha256, size, cmdline: String::new() })?;
        self.poke.poke(&key);
        Ok(http::StatusCode::NO_CONTENT.into_response())
    }
}

impl ContentRoute {
    /// Says in the record why the content was refused.
    async fn note_failure(&self, name: &Name, e: &Error) {
        let Ok(Some(image)) = self.store.get::<ImageSpec>(None, name).await else { return };
        let mut tx = self.store.begin();
        let change = tx.update(&image, |i| {
            i.status.phase = "failed".into();
            i.status.observed_generation = i.meta.generation;
            set_condition(&mut i.status.conditions, "Ready", false, "Refused", e.to_string(), wall());
        });
        if change.await.is_ok() {
            let _ = tx.commit().await; // the caller has the error itself
        }
    }
}

/// A file that is received; it goes when whoever sends it goes.
struct Upload(PathBuf);

impl Drop for Upload {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0); // gone already when the import moved it
    }
}

/// Writes the body to `path`, hashing as it goes.
async fn receive(path: &Path, request: axum::extract::Request) -> Result<String> {
    let failed = |e: std::io::Error| Error::new(Code::Exhausted, "the image cannot be stored").why(e);
    let mut file = Some(fs::OpenOptions::new().create_new(true).write(true).open(path).map_err(failed)?);
    let mut digest = Sha256::new();
    let mut size = 0u64;
    let mut body = request.into_body().into_data_stream();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|e| Error::new(Code::Invalid, "the upload broke off").why(e))?;
        size += chunk.len() as u64;
        if size > UPLOAD_BYTES_MAX {
            return Err(Error::new(Code::Invalid, "the image is too large").why("at most 256GiB are read"));
        }
        digest.update(&chunk);
        let mut f = file.take().ok_or_else(|| Error::internal("an upload without a file"))?;
        let (f, written) = blocking(move || {
            let r = f.write_all(&chunk);
            (f, r)
        })
        .await;
        written.map_err(failed)?;
        file = Some(f);
    }
    if let Some(f) = file {
        blocking(move || f.sync_all()).await.map_err(failed)?;
    }
    Ok(hex(digest))
}

fn hex(digest: Sha256) -> String {
    digest.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use photon_auth::{Action, Caller, Decision, Gate, Policy, Target, Verb};
    use photon_kv::MemKv;
    use photon_rt::time::Duration;

    struct Anything;

    #[async_trait]
    impl Policy for Anything {
        async fn decide(&self, _: &Caller, _: Action, _: &Target) -> Decision {
            Decision::Allow { because: "test".into() }
        }
    }

    #[tokio::test]
    async fn of_two_uploads_at_once_one_wins_whole_and_one_that_breaks_off_leaves_nothing() {
        let dir = std::env::temp_dir().join(format!("photon-images-{:x}", photon_rt::entropy::u64()));
        let host: Name = "h1".parse().expect("name");
        let images = Images { host, dir: dir.clone(), finishing: Arc::default() };
        let store = Store::new(std::sync::Arc::new(MemKv::new()), Arc::new(photon_api::registry()));
        let name: Name = "a".parse().expect("name");
        let made = store.make("image", "a", &serde_json::json!({ "format": "raw" })).await.expect("made");
        let lease = photon_reconcile::Lease::start(
            store.kv().clone(),
            "test",
            name.clone(),
            &photon_rt::task::Tasks::new(),
        );
        let poke = photon_reconcile::Manager::new(store.clone(), lease).poke();
        let route = ContentRoute { images: images.clone(), store, poke };
        let send = async |body: Body| {
            let action = Action { kind: "image", verb: Verb::Update };
            let target = Target { project: None, name: Some(name.clone()) };
            let gate = Gate::new(Arc::new(Anything));
            let who = gate.check(&Caller::internal("test"), action, target).await.expect("allowed");
            let request = http::Request::builder().method("PUT").body(body).expect("request");
            route.connect(who, request).await
        };
        let folder = images.folder(made.meta.id);
        let never = Body::from_stream(futures::stream::pending::<std::io::Result<bytes::Bytes>>());
        let broken = photon_rt::time::timeout(Duration::from_millis(200), "never", send(never)).await;
        assert!(broken.is_err());
        assert_eq!(fs::read_dir(&folder).expect("folder").count(), 0, "nothing is left of it");
        let content = |b: u8| vec![b; 4 << 20];
        let (a, b) = tokio::join!(send(Body::from(content(1))), send(Body::from(content(2))));
        assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
        let winner = if a.is_ok() { 1 } else { 2 };
        assert_eq!(fs::read(folder.join("disk.raw")).expect("disk"), content(winner));
        let mut digest = Sha256::new();
        digest.update(content(winner));
        assert_eq!(images.ready(made.meta.id).expect("ready").sha256, hex(digest));
        fs::remove_dir_all(&dir).expect("clean");
    }
}
