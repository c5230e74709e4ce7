//! Keys to regions. A request that met a region which has changed is sent again, to whoever has the keys then.

use super::{Request, Response, World};
use crate::{
    Refusal,
    model::{Answer, Descriptor, Op, command::Mutation},
    refusal::Outcome,
};
use bytes::Bytes;
use futures::future::join_all;

/// How often a request is sent before its outcome counts as unknown.
const ATTEMPTS: u32 = 30;

/// Most keys that one request carries.
const BATCH: usize = 256;

/// Bytes of keys and values after which a request takes no more.
const BATCH_BYTES: usize = 2 << 20;

/// What goes with a key into a request.
pub(super) trait Load: Clone + Send {
    /// Its bytes.
    fn bytes(&self) -> usize;
}

impl Load for () {
    fn bytes(&self) -> usize {
        0
    }
}

impl Load for Mutation {
    fn bytes(&self) -> usize {
        self.key.len() + self.value.len()
    }
}

/// Waits a little longer every time, and never as long as another client.
pub(super) async fn back_off<W: World>(world: &W, attempt: u32) {
    let ms = 2u64 << attempt.min(7);
    world.sleep(ms / 2 + world.draw(ms / 2 + 1)).await;
}

/// What a region is asked for by.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    /// The region of this key.
    Of(&'a Bytes),
    /// The region just before this bound.
    Below(&'a Bytes),
}

/// Asks the region of a place, until it answers for itself.
pub(super) async fn ask<W: World>(
    world: &W,
    place: Place<'_>,
    request: impl Fn(&Descriptor) -> Request,
) -> Outcome<Response> {
    let mut last = Refusal::Unknown("no region answered".into());
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            back_off(world, attempt).await;
        }
        let found = match place {
            Place::Of(key) => world.locate(key).await,
            Place::Below(end) => world.locate_below(end).await,
        };
        let region = match found {
            Ok(r) => r,
            Err(e) if e.is_about_routing() => {
                last = e;
                continue;
            }
            Err(e) => return Err(e),
        };
        match world.ask(&region, request(&region)).await {
            Err(e) if e.is_about_routing() => {
                world.forget(&region);
                last = e;
            }
            answer => return answer,
        }
    }
    Err(Refusal::Unknown(last.to_string()))
}

/// Does something at the region of `key`.
pub(super) async fn act<W: World>(world: &W, key: &Bytes, op: Op) -> Outcome<Answer> {
    match ask(world, Place::Of(key), |_| Request::Do(op.clone())).await? {
        Response::Done(a) => Ok(a),
        _ => Err(Refusal::Malformed("an answer to another question".into())),
    }
}

/// Items for one region.
struct Group<T> {
    region: Descriptor,
    items: Vec<(Bytes, T)>,
    bytes: usize,
}

/// Items, grouped by region, no group too large for a request.
async fn group<W: World, T: Load>(world: &W, items: &[(Bytes, T)]) -> Outcome<Vec<Group<T>>> {
    let mut out: Vec<Group<T>> = Vec::new();
    for (key, item) in items {
        let bytes = key.len() + item.bytes();
        // Keys come in order, more often than not.
        let fits = out.iter_mut().rev().find(|g| {
            g.region.span().contains(key) && g.items.len() < BATCH && g.bytes + bytes <= BATCH_BYTES
        });
        match fits {
            Some(g) => {
                g.items.push((key.clone(), item.clone()));
                g.bytes += bytes;
            }
            None => {
                let region = world.locate(key).await?;
                out.push(Group { region, items: vec![(key.clone(), item.clone())], bytes });
            }
        }
    }
    Ok(out)
}

/// Does something with many keys, wherever they are: `op` makes a request out of those of one region. The
/// answers of all; the first refusal that is not about routing ends it, when all that was sent is answered.
pub(super) async fn spread<W: World, T: Load>(
    world: &W,
    items: Vec<(Bytes, T)>,
    op: impl Fn(Vec<(Bytes, T)>) -> Op,
) -> Outcome<Vec<Answer>> {
    let mut left = items;
    let mut answers = Vec::new();
    let mut last = Refusal::Unknown("no region answered".into());
    for attempt in 0..ATTEMPTS {
        if left.is_empty() {
            return Ok(answers);
        }
        if attempt > 0 {
            back_off(world, attempt).await;
        }
        let groups = match group(world, &left).await {
            Ok(g) => g,
            Err(e) if e.is_about_routing() => {
                last = e;
                continue;
            }
            Err(e) => return Err(e),
        };
        let sent = groups.into_iter().map(|Group { region, items, .. }| {
            let request = Request::Do(op(items.clone()));
            async move { (world.ask(&region, request).await, region, items) }
        });
        left = Vec::new();
        let (mut refused, mut locked) = (None, Vec::new());
        for (answer, region, items) in join_all(sent).await {
            match answer {
                Ok(Response::Done(a)) => answers.push(a),
                Ok(_) => refused = Some(Refusal::Malformed("an answer to another question".into())),
                Err(e) if e.is_about_routing() => {
                    world.forget(&region);
                    left.extend(items);
                    last = e;
                }
                Err(Refusal::Locked(l)) => locked.extend(l),
                Err(e) => refused = Some(e),
            }
        }
        match refused {
            Some(e) => return Err(e),
            None if !locked.is_empty() => return Err(Refusal::Locked(locked)),
            None => {}
        }
    }
    Err(Refusal::Unknown(last.to_string()))
}
