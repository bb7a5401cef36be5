//! TLS, authentication and tenants, written. There is no secret among them: those are in files of their own.

use std::collections::BTreeMap;

use crate::config::raw::identity::{RawAuth, RawJwt, RawTenant, RawTls};
use crate::config::units::Human;
use crate::config::{AuthConfig, TenantConfig, TlsConfig};

pub(super) fn tls(tls: Option<&TlsConfig>) -> RawTls {
    let Some(tls) = tls else {
        return RawTls::default();
    };
    RawTls {
        cert: Some(tls.cert.clone()),
        key: Some(tls.key.clone()),
        client_ca: tls.client_ca.clone(),
        client_auth: tls.client_ca.is_some().then_some(tls.client_auth),
    }
}

pub(super) fn auth(auth: &AuthConfig) -> RawAuth {
    let jwt = auth.jwt.as_ref().map(|jwt| RawJwt {
        jwks: Some(jwt.jwks.clone()),
        issuers: Some(jwt.issuers.clone()),
        audiences: Some(jwt.audiences.clone()),
        algorithms: Some(jwt.algorithms.clone()),
        tenant_claim: Some(jwt.tenant_claim.clone()),
        leeway: Some(Human(jwt.leeway)),
    });
    RawAuth {
        tokens: auth.tokens.clone(),
        allow_anonymous: Some(auth.allow_anonymous),
        open_health: Some(auth.open_health),
        jwt: jwt.unwrap_or_default(),
    }
}

pub(super) fn tenants(tenants: &[TenantConfig]) -> BTreeMap<String, RawTenant> {
    let raw = |tenant: &TenantConfig| RawTenant {
        sans: (!tenant.sans.is_empty()).then(|| tenant.sans.clone()),
        services: Some(tenant.services.clone()),
        models: Some(tenant.models.clone()),
        weight: Some(tenant.weight),
        requests_per_second: tenant.requests_per_second,
        tokens_per_minute: tenant.tokens_per_minute,
        max_concurrent: tenant.max_concurrent,
        queue_share: Some(tenant.queue_share),
    };
    tenants.iter().map(|t| (t.name.clone(), raw(t))).collect()
}
