//! What each tenant may use, how much of it, and how much it has used.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use baichuan_engine::TenantId;
use baichuan_engine::request::Account;

use super::bucket::Bucket;
use crate::config::{OTHER, Service, TenantConfig};
use crate::error::{ApiError, Denied, Exhausted};

/// Models' name in an allow-list that means every model.
const ALL: &str = "*";

/// What a method belongs to, as far as permission goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// A service that tenants are allowed or not.
    Service(Service),
    /// `grpc.health.v1.Health`, and its like for routers.
    Health,
    /// Reflection: whoever is somebody may ask what there is.
    Reflection,
}

impl Group {
    /// Of a call's path. What is none of the known services is an application's.
    pub(crate) fn of(path: &str) -> Self {
        if path == "/vllm.grpc.engine.VllmEngine/HealthCheck" {
            return Self::Health;
        }
        let service = path
            .strip_prefix('/')
            .and_then(|p| p.split_once('/'))
            .map_or("", |(s, _)| s);
        match service {
            "baichuan.v1.ModelService" => Self::Service(Service::ModelService),
            "baichuan.v1.ControlService" => Self::Service(Service::ControlService),
            "baichuan.v1.AdminService" => Self::Service(Service::AdminService),
            "grpc.health.v1.Health" => Self::Health,
            "grpc.reflection.v1.ServerReflection" | "grpc.reflection.v1alpha.ServerReflection" => {
                Self::Reflection
            }
            _ => Self::Service(Service::InferenceService),
        }
    }
}

/// Share of the newest call in the mean time of calls.
const NEWEST: f64 = 0.2;
/// What calls take, before any has ended.
const UNKNOWN: Duration = Duration::from_secs(1);
/// Sooner makes no difference.
const LEAST_DELAY: Duration = Duration::from_millis(50);

/// A tenant.
pub(crate) struct Tenant {
    id: TenantId,
    config: TenantConfig,
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    running: AtomicUsize,
    /// Mean seconds of its calls.
    call_seconds: Mutex<Option<f64>>,
    prompt_tokens: AtomicU64,
    completion_tokens: AtomicU64,
}

/// A call of a tenant, running while this lives.
pub(crate) struct Running {
    tenant: Arc<Tenant>,
    /// Absent for one that was refused: its time says nothing of others'.
    since: Option<Instant>,
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tenant({})", self.config.name)
    }
}

impl Tenant {
    fn new(id: TenantId, config: TenantConfig) -> Self {
        let now = Instant::now();
        // A second's worth of requests, or one, and a minute's worth of tokens may come at once.
        let requests = config
            .requests_per_second
            .map(|rate| Bucket::new(rate, rate.max(1.0), now));
        let tokens = config.tokens_per_minute.map(|tokens| {
            let tokens = tokens as f64;
            Bucket::new(tokens / 60.0, tokens, now)
        });
        Self {
            id,
            config,
            requests,
            tokens,
            running: AtomicUsize::new(0),
            call_seconds: Mutex::new(None),
            prompt_tokens: AtomicU64::new(0),
            completion_tokens: AtomicU64::new(0),
        }
    }

    /// Its number in engines.
    pub(crate) fn id(&self) -> TenantId {
        self.id
    }

    /// On whose account its requests run in engines.
    pub(crate) fn account(&self) -> Account {
        Account {
            tenant: self.id,
            weight: self.config.weight,
            queue_share: self.config.queue_share,
        }
    }

    /// A call begins, if it may have one more at once.
    pub(crate) fn begin(self: &Arc<Self>) -> Result<Running, ApiError> {
        let running = self.running.fetch_add(1, Ordering::Relaxed);
        let mut begun = Running {
            tenant: self.clone(),
            since: Some(Instant::now()),
        };
        match self.config.max_concurrent {
            Some(limit) if running >= limit => {
                begun.since = None;
                // One of so many ends, each after as long as they took lately.
                let mean = *self.call_seconds.lock().unwrap_or_else(PoisonError::into_inner);
                let seconds = mean.unwrap_or(UNKNOWN.as_secs_f64()) / limit as f64;
                let message = format!(
                    "{running} calls of this tenant run already, it may have {limit} (max_concurrent)"
                );
                Err(over_quota(
                    message,
                    Duration::try_from_secs_f64(seconds).unwrap_or(UNKNOWN),
                ))
            }
            _ => Ok(begun),
        }
    }

    /// Takes so many requests, and tokens of their prompts, of what it may have.
    pub(crate) fn charge(&self, requests: usize, tokens: usize) -> Result<(), ApiError> {
        let now = Instant::now();
        if let Some(bucket) = &self.requests {
            bucket.take(requests as f64, now).map_err(|wait| {
                let limit = self.config.requests_per_second.unwrap_or_default();
                over_quota(format!("this tenant may make {limit} requests per second"), wait)
            })?;
        }
        if let Some(bucket) = &self.tokens {
            bucket.take(tokens as f64, now).map_err(|wait| {
                self.refund(requests, 0);
                let limit = self.config.tokens_per_minute.unwrap_or_default();
                over_quota(format!("this tenant may use {limit} tokens per minute"), wait)
            })?;
        }
        Ok(())
    }

    /// Gives back what was charged for requests that were not taken.
    pub(crate) fn refund(&self, requests: usize, tokens: usize) {
        let now = Instant::now();
        if let Some(bucket) = &self.requests {
            bucket.spend(-(requests as f64), now);
        }
        if let Some(bucket) = &self.tokens {
            bucket.spend(-(tokens as f64), now);
        }
    }

    /// Requests with so many prompt tokens were taken; they are charged already.
    pub(crate) fn used_prompt(&self, tokens: usize) {
        self.prompt_tokens.fetch_add(tokens as u64, Ordering::Relaxed);
    }

    /// So many tokens were generated.
    pub(crate) fn used_completion(&self, tokens: usize) {
        self.completion_tokens.fetch_add(tokens as u64, Ordering::Relaxed);
        if let Some(bucket) = &self.tokens {
            bucket.spend(tokens as f64, Instant::now());
        }
    }

    /// Tokens used since start: of prompts, and generated.
    pub(crate) fn tokens_used(&self) -> (u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (read(&self.prompt_tokens), read(&self.completion_tokens))
    }

    /// Share used of its tokens per minute, where they are limited.
    pub(crate) fn token_quota_used(&self) -> Option<f64> {
        self.tokens
            .as_ref()
            .map(|bucket| bucket.used(Instant::now()).max(0.0))
    }

    /// Its configured name.
    pub(crate) fn name(&self) -> &str {
        &self.config.name
    }

    /// Whether it may call a service.
    pub(crate) fn may_call(&self, group: Group) -> Result<(), ApiError> {
        match group {
            Group::Service(service) if !self.config.services.contains(&service) => {
                Err(ApiError::Denied(Denied::Service(service)))
            }
            _ => Ok(()),
        }
    }

    /// Whether it is the operator's: it may see and end what others run.
    pub(crate) fn is_operator(&self) -> bool {
        self.config.services.contains(&Service::AdminService)
    }

    /// Whether it may use a model, by its served name.
    pub(crate) fn may_use(&self, model: &str) -> bool {
        self.config.models.iter().any(|m| m == ALL || m == model)
    }

    /// As [`Self::may_use`], as a call's end.
    pub(crate) fn must_be_allowed(&self, model: &str) -> Result<(), ApiError> {
        match self.may_use(model) {
            true => Ok(()),
            false => Err(ApiError::Denied(Denied::Model(model.to_owned()))),
        }
    }
}

fn over_quota(message: String, wait: Duration) -> ApiError {
    ApiError::Exhausted {
        reason: Exhausted::TenantQuota,
        message,
        retry_after: Some(wait.max(LEAST_DELAY)),
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tenant.running.fetch_sub(1, Ordering::Relaxed);
        let Some(since) = self.since else { return };
        let took = since.elapsed().as_secs_f64();
        let mut mean = self
            .tenant
            .call_seconds
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *mean = Some(mean.map_or(took, |mean| mean + NEWEST * (took - mean)));
    }
}

/// All tenants.
#[derive(Debug)]
pub(crate) struct Tenants {
    by_name: BTreeMap<String, Arc<Tenant>>,
    by_san: HashMap<String, Arc<Tenant>>,
}

impl Tenants {
    pub(crate) fn new(configs: &[TenantConfig]) -> Self {
        let mut tenants = Self {
            by_name: BTreeMap::new(),
            by_san: HashMap::new(),
        };
        for (number, config) in (0..).zip(configs) {
            let tenant = Arc::new(Tenant::new(TenantId(number), config.clone()));
            for san in &config.sans {
                tenants.by_san.insert(san.clone(), tenant.clone());
            }
            tenants.by_name.insert(config.name.clone(), tenant);
        }
        tenants
    }

    /// On whose account the tenant called `name` goes: its own, or that of all others where there is one.
    pub(crate) fn account(&self, name: &str) -> Option<&Arc<Tenant>> {
        self.by_name.get(name).or_else(|| self.by_name.get(OTHER))
    }

    /// The tenant that one of a certificate's names is of.
    pub(crate) fn of_sans(&self, sans: &[String]) -> Option<&Arc<Tenant>> {
        sans.iter().find_map(|san| self.by_san.get(san))
    }

    /// All of them, by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Tenant>> {
        self.by_name.values()
    }
}
