//! Streams of `Generate` that outlive their connection: kept by owner and request id, and taken up from where a caller
//! lost them.
//!
//! A [`pump`] owns the generation and writes its messages onto a [`stream`]'s [`tape`]; a [`reader`] per call reads
//! them. Who ends a call ends the request; whose connection breaks may come back within a window. A second reader takes
//! over from the first, which may hang on a connection whose loss nobody has noticed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use baichuan_engine::{RequestId, TenantId, Violations};
use baichuan_proto::v1;
use prost::Message;
use sha2::{Digest, Sha256};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::generate;
use super::lifeline::Lifeline;
use super::meta::{Meta, check_request_id};
use crate::app::App;
use crate::config::{RequestsConfig, Resume};
use crate::error::{ApiError, Exhausted, NotResumable};
use crate::identity::tenant::Tenant;

mod pump;
mod reader;
mod stream;
mod tape;

use pump::Pump;
pub(super) use reader::Reader;
use stream::Stream;

/// When a place will be free is not known; most are free again before the window is over.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Whose stream it is, and what they call it.
type Name = (Arc<str>, RequestId);

/// All streams that are kept.
pub(crate) struct Streams {
    window: Duration,
    buffer_bytes: usize,
    max_streams: usize,
    kept: Mutex<Kept>,
    pumps: TaskTracker,
}

#[derive(Default)]
struct Kept {
    streams: HashMap<Name, Arc<Stream>>,
    /// Whose requests are being begun.
    beginning: Vec<TenantId>,
}

impl fmt::Debug for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streams")
            .field("kept", &self.kept().streams.len())
            .finish_non_exhaustive()
    }
}

/// Room for one more stream.
struct Place<'a> {
    streams: &'a Streams,
    tenant: TenantId,
}

/// Whether a request's stream is one to keep or to take up.
pub(super) fn is_wanted(app: &App, request: &v1::GenerateRequest) -> bool {
    match app.config.requests.resume {
        Resume::Off | Resume::Asked => request.resume_from_token.is_some(),
        Resume::Always => true,
    }
}

/// Begins a request whose stream is kept, or takes up the one there is.
pub(super) async fn open(
    app: &Arc<App>,
    id: &RequestId,
    meta: &Meta,
    lifeline: Lifeline,
    request: v1::GenerateRequest,
) -> Result<Reader, ApiError> {
    if app.config.requests.resume == Resume::Off {
        return Err(ApiError::Unsupported {
            field: "resume_from_token".into(),
            feature: "taking streams up again (requests.resume)".into(),
        });
    }
    let mut violations = Violations::default();
    check_request_id("request_id", &request.request_id, &mut violations);
    violations.or(())?;
    let identity = meta.identity()?;
    let name = (identity.owner.clone(), id.clone());
    // A prompt may be large.
    let (contents, request) = match request.prompt.is_some() {
        true => {
            let account = identity.tenant.account();
            let work = move || (contents(&request), request);
            app.text.run(account, work).await?
        }
        false => (contents(&request), request),
    };
    if let Some(token) = request.resume_from_token {
        if let Some(stream) = app.streams.find(&name) {
            if request.prompt.is_some() && contents != stream.contents {
                let message = format!("the stream of {:?} answers another request", id.as_str());
                return Err(ApiError::invalid("request_id", message));
            }
            if let Some(place) = stream.attach(token, meta.own_limit(request.time_limit_ms))? {
                app.metrics.streams.resumed.inc();
                return Ok(Reader::new(app, id, stream, place, lifeline));
            }
        }
        if token > 0 {
            return Err(ApiError::NotResumable(NotResumable::Unknown {
                id: id.to_string(),
            }));
        }
    }
    let place = app.streams.place(&identity.tenant)?;
    let generation = generate::start(app, id, meta, request).await?;
    let id = &generation.id().clone();
    let name = (identity.owner.clone(), id.clone());
    let stream = app.streams.keep(name.clone(), contents, place);
    let reader = Reader::new(app, id, stream.clone(), (0, 0), lifeline);
    let pump = Pump {
        stream: stream.clone(),
        id: id.clone(),
        window: app.streams.window,
        metrics: app.metrics.clone(),
        ended: app.calls.ended(),
    };
    let running = app.calls.hold();
    let streams = app.streams.clone();
    let pumping = async move {
        pump.run(generation, running).await;
        streams.forget(&name, &stream);
    };
    app.streams.pumps.spawn(pumping.in_current_span());
    Ok(reader)
}

/// Digest of all that decides what a request yields.
fn contents(request: &v1::GenerateRequest) -> [u8; 32] {
    let mut request = v1::GenerateRequest {
        request_id: String::new(),
        resume_from_token: None,
        time_limit_ms: None,
        priority: None,
        ..request.clone()
    };
    // A map is encoded in any order.
    let bias = request
        .sampling
        .as_mut()
        .map(|s| std::mem::take(&mut s.logit_bias));
    let mut bias: Vec<_> = bias.into_iter().flatten().collect();
    bias.sort_by_key(|(token, _)| *token);
    let mut digest = Sha256::new();
    for (token, value) in bias {
        digest.update(token.to_le_bytes());
        digest.update(value.to_le_bytes());
    }
    digest.update(request.encode_to_vec());
    digest.finalize().into()
}

impl Streams {
    /// None yet.
    pub(crate) fn new(config: &RequestsConfig) -> Self {
        Self {
            window: config.resume_window,
            buffer_bytes: config.resume_buffer_bytes,
            max_streams: config.resume_streams,
            kept: Mutex::default(),
            pumps: TaskTracker::new(),
        }
    }

    /// Kept now.
    pub(crate) fn len(&self) -> usize {
        self.kept().streams.len()
    }

    /// Returns when all are forgotten: once calls are ended.
    pub(crate) async fn ended(&self) {
        self.pumps.close();
        self.pumps.wait().await;
    }

    fn find(&self, name: &Name) -> Option<Arc<Stream>> {
        self.kept().streams.get(name).cloned()
    }

    /// Takes room for a stream of `tenant`. Streams that ended and that nobody reads make room, the longest idle first.
    fn place(&self, tenant: &Tenant) -> Result<Place<'_>, ApiError> {
        let account = tenant.account();
        let share = (self.max_streams as f64 * account.queue_share).ceil() as usize;
        let share = share.clamp(1, self.max_streams);
        let mut kept = self.kept();
        loop {
            let own = kept.of(account.tenant);
            let is_over_share = own >= share;
            if !is_over_share && kept.streams.len() + kept.beginning.len() < self.max_streams {
                break;
            }
            let whose = is_over_share.then_some(account.tenant);
            if !kept.evict(whose) {
                let (reason, message) = match is_over_share {
                    true => (
                        Exhausted::TenantQuota,
                        format!("{own} streams of this tenant are kept already, it may have {share}"),
                    ),
                    false => (
                        Exhausted::Queue,
                        format!(
                            "{} streams are kept already (requests.resume_streams)",
                            self.max_streams
                        ),
                    ),
                };
                return Err(ApiError::Exhausted {
                    reason,
                    message,
                    retry_after: Some(RETRY_DELAY),
                });
            }
        }
        kept.beginning.push(account.tenant);
        Ok(Place {
            streams: self,
            tenant: account.tenant,
        })
    }

    fn keep(&self, name: Name, contents: [u8; 32], place: Place<'_>) -> Arc<Stream> {
        let stream = Arc::new(Stream::new(contents, place.tenant, self.buffer_bytes));
        let before = self.kept().streams.insert(name, stream.clone());
        drop(place);
        // One that ended and was still kept: its name is another request's now.
        if let Some(before) = before {
            before.give_up();
        }
        stream
    }

    fn forget(&self, name: &Name, stream: &Arc<Stream>) {
        if let Entry::Occupied(entry) = self.kept().streams.entry(name.clone())
            && Arc::ptr_eq(entry.get(), stream)
        {
            entry.remove();
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn of(&self, tenant: TenantId) -> usize {
        let kept = self.streams.values().filter(|s| s.tenant == tenant).count();
        kept + self.beginning.iter().filter(|t| **t == tenant).count()
    }

    /// Forgets the stream that has ended and been idle for longest, of one tenant or of all.
    fn evict(&mut self, whose: Option<TenantId>) -> bool {
        let idle = self
            .streams
            .iter()
            .filter(|(_, stream)| whose.is_none_or(|tenant| tenant == stream.tenant))
            .filter_map(|(name, stream)| Some((stream.idle_since()?, name)));
        let Some((_, name)) = idle.min_by_key(|(since, _)| *since) else {
            return false;
        };
        let name = name.clone();
        if let Some(stream) = self.streams.remove(&name) {
            stream.give_up();
        }
        true
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut kept = self.streams.kept();
        if let Some(at) = kept.beginning.iter().position(|tenant| *tenant == self.tenant) {
            kept.beginning.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests;
