//! What a tenant's request passes before it may wait: its quotas, the same for a generation, the inputs of an embedding
//! and each input of a stream. Nothing here waits.

use std::sync::Arc;

use crate::app::App;
use crate::error::ApiError;
use crate::identity::tenant::{Running, Tenant};

/// What was taken of a tenant's quotas for requests that are about to be made.
pub(super) struct Charge {
    app: Arc<App>,
    tenant: Arc<Tenant>,
    requests: usize,
    tokens: usize,
}

/// A call of a tenant begins; it counts as running while what is returned lives.
pub(super) fn begin(app: &App, tenant: &Arc<Tenant>) -> Result<Arc<Running>, ApiError> {
    tenant
        .begin()
        .map(Arc::new)
        .inspect_err(|error| app.metrics.tenant_rejected(tenant.name(), error))
}

/// Takes so many requests and tokens of their prompts of a tenant's quotas.
pub(super) fn charge(
    app: &Arc<App>,
    tenant: &Arc<Tenant>,
    requests: usize,
    tokens: usize,
) -> Result<Charge, ApiError> {
    tenant
        .charge(requests, tokens)
        .inspect_err(|error| app.metrics.tenant_rejected(tenant.name(), error))?;
    Ok(Charge {
        app: app.clone(),
        tenant: tenant.clone(),
        requests,
        tokens,
    })
}

impl Charge {
    /// The requests were made. Where that ended in a refusal, only those cost anything that were `taken` before it:
    /// so many, with so many tokens.
    pub(super) fn settle<T>(self, outcome: &Result<T, ApiError>, taken: (usize, usize)) {
        match outcome {
            Err(error) if error.is_refusal() => {
                let (requests, tokens) = taken;
                self.tenant.refund(
                    self.requests.saturating_sub(requests),
                    self.tokens.saturating_sub(tokens),
                );
                self.tenant.used_prompt(tokens);
                self.app.metrics.tenant_rejected(self.tenant.name(), error);
            }
            _ => self.tenant.used_prompt(self.tokens),
        }
    }
}
