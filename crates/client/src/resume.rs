//! Takes a stream up again when its connection breaks, from the token after the last one received.
//!
//! Where nobody has the stream any more, for its server has ended or forgot it, the request is made again, with the same
//! seed, and what has come already is left out; it must be the same.

use std::error::Error as _;
use std::time::Duration;

use baichuan_proto::v1;
use futures::StreamExt;
use futures::stream;
use tokio::time::{Instant, sleep};
use tonic::{Code, Status, Streaming};

use crate::client::Client;
use crate::error::Error;
use crate::generation::{Event, Generation, typed};

mod received;

use received::Received;

/// Waits between two attempts to take a stream up.
const FIRST_DELAY: Duration = Duration::from_millis(50);
const LONGEST_DELAY: Duration = Duration::from_secs(1);
/// Why a server that ends says that a stream does.
const SERVER_ENDED: &str = "SERVER_ENDED";

/// A name for a request, such as nobody else has.
pub fn new_request_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// The attempts since a loss, whether they fail at once or get a stream that breaks soon and tells nothing new.
struct Search {
    /// When patience is over; absent: never.
    end: Option<Instant>,
    /// Before the next attempt.
    delay: Duration,
}

/// A stream that is taken up again.
pub(crate) struct Resuming {
    client: Client,
    request: v1::GenerateRequest,
    patience: Duration,
    /// Absent until somebody answers.
    stream: Option<Streaming<v1::GenerateResponse>>,
    /// When it was got.
    since: Instant,
    /// Absent while nothing is lost.
    search: Option<Search>,
    received: Received,
}

impl Resuming {
    /// Begins a request.
    pub(crate) async fn begin(
        client: Client,
        mut request: v1::GenerateRequest,
        patience: Duration,
    ) -> Result<Generation, Error> {
        if request.request_id.is_empty() {
            request.request_id = new_request_id();
        }
        // Known from the start, so that the request can be made again.
        let sampling = request.sampling.get_or_insert_default();
        sampling.seed.get_or_insert_with(rand::random);
        let id = request.request_id.clone();
        let mut resuming = Self {
            client,
            request,
            patience,
            stream: None,
            since: Instant::now(),
            search: None,
            received: Received::default(),
        };
        resuming.stream = Some(resuming.open().await?);
        resuming.search = None;
        let events = stream::unfold(Some(resuming), async |resuming| {
            let mut resuming = resuming?;
            match resuming.next().await {
                Ok(event) => Some((Ok(event?), Some(resuming))),
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(Generation::new(id, events.boxed()))
    }

    async fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            let message = match &mut self.stream {
                Some(stream) => stream.message().await,
                None => {
                    self.stream = Some(self.open().await?);
                    continue;
                }
            };
            match message {
                Ok(Some(message)) => {
                    let event = typed(message)?;
                    if self.received.is_news(&event)? {
                        self.search = None;
                        return Ok(Some(event));
                    }
                }
                Ok(None) => return Ok(None),
                Err(status) => {
                    let is_loss = is_loss(&status);
                    let error = Error::from(status.clone());
                    let reason = error.refusal().and_then(|refusal| refusal.reason.as_deref());
                    if !is_loss && reason != Some(SERVER_ENDED) {
                        return Err(error);
                    }
                    self.stream = None;
                    // One that held so long was found, whatever it told: a server may take its time to come to what is new.
                    if self.since.elapsed() >= self.patience {
                        self.search = None;
                    }
                    if self.search.is_some() {
                        self.pause(status).await?;
                    }
                }
            }
        }
    }

    /// Asks for what has not been received, until somebody answers or patience is over.
    async fn open(&mut self) -> Result<Streaming<v1::GenerateResponse>, Error> {
        self.search.get_or_insert_with(|| Search {
            end: Instant::now().checked_add(self.patience),
            delay: FIRST_DELAY,
        });
        loop {
            let request = v1::GenerateRequest {
                resume_from_token: Some(self.received.tokens),
                ..self.request.clone()
            };
            let status = match self.client.inference().generate(request).await {
                Ok(response) => {
                    self.since = Instant::now();
                    return Ok(response.into_inner());
                }
                Err(status) => status,
            };
            if status.code() == Code::NotFound && self.received.tokens > 0 {
                self.received.begin_again();
                continue;
            }
            let is_worth_trying = is_loss(&status) || status.code() == Code::Unavailable;
            if !is_worth_trying {
                return Err(status.into());
            }
            self.pause(status).await?;
        }
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    /// What the last one ended with, where patience would be over by then.
    async fn pause(&mut self, status: Status) -> Result<(), Error> {
        let Some(search) = &mut self.search else {
            return Ok(());
        };
        if search.end.is_some_and(|end| Instant::now() + search.delay > end) {
            return Err(status.into());
        }
        sleep(search.delay).await;
        search.delay = (search.delay * 2).min(LONGEST_DELAY);
        Ok(())
    }
}

/// Whether it is the transport that failed, not the server that spoke: its words have no cause on this side.
fn is_loss(status: &Status) -> bool {
    status.source().is_some()
}
