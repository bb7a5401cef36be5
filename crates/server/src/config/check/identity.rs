//! TLS, authentication and tenants.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::Findings;
use crate::config::identity::{ANONYMOUS, Service};
use crate::config::raw::identity::{RawAuth, RawJwt, RawTenant, RawTls};
use crate::config::{AuthConfig, JwtAlgorithm, JwtConfig, ListenConfig, TenantConfig, TlsConfig};

const MAX_TENANT_NAME_BYTES: usize = 63;
const MAX_TENANTS: usize = 1000;
const MAX_LEEWAY: Duration = Duration::from_secs(300);
const SAN_KINDS: [&str; 3] = ["dns:", "uri:", "email:"];

pub(super) fn tls(raw: RawTls, findings: &mut Findings) -> Option<TlsConfig> {
    let says_anything = raw != RawTls::default();
    let (Some(cert), Some(key)) = (raw.cert, raw.key) else {
        let keys = ["tls.cert", "tls.key", "tls.client_ca", "tls.client_auth"];
        findings.that(!says_anything, &keys, || {
            "TLS needs both tls.cert and tls.key".into()
        });
        return None;
    };
    let asks = raw.client_ca.is_some();
    findings.that(raw.client_auth.is_none() || asks, &["tls.client_auth"], || {
        "needs tls.client_ca beside it".into()
    });
    Some(TlsConfig {
        cert,
        key,
        client_ca: raw.client_ca,
        client_auth: raw.client_auth.unwrap_or_default(),
    })
}

pub(super) fn auth(raw: RawAuth, findings: &mut Findings) -> AuthConfig {
    AuthConfig {
        tokens: raw.tokens,
        jwt: jwt(raw.jwt, findings),
        allow_anonymous: raw.allow_anonymous.unwrap_or(false),
        open_health: raw.open_health.unwrap_or(true),
    }
}

fn jwt(raw: RawJwt, findings: &mut Findings) -> Option<JwtConfig> {
    if raw.is_empty() {
        return None;
    }
    let Some(jwks) = raw.jwks else {
        let keys = ["issuers", "audiences", "algorithms", "tenant_claim", "leeway"];
        let keys = keys.map(|key| format!("auth.jwt.{key}"));
        findings.that(false, &keys.each_ref().map(String::as_str), || {
            "needs auth.jwt.jwks beside it".into()
        });
        return None;
    };
    let jwt = JwtConfig {
        jwks,
        issuers: raw.issuers.unwrap_or_default(),
        audiences: raw.audiences.unwrap_or_default(),
        algorithms: raw
            .algorithms
            .unwrap_or_else(|| vec![JwtAlgorithm::RS256, JwtAlgorithm::ES256, JwtAlgorithm::EdDSA]),
        tenant_claim: raw.tenant_claim.unwrap_or_else(|| "tenant".into()),
        leeway: raw.leeway.map_or(Duration::from_secs(30), |leeway| leeway.0),
    };
    for (key, empty) in [
        ("auth.jwt.issuers", jwt.issuers.is_empty()),
        ("auth.jwt.audiences", jwt.audiences.is_empty()),
        ("auth.jwt.algorithms", jwt.algorithms.is_empty()),
    ] {
        findings.that(!empty, &[key, "auth.jwt.jwks"], || {
            format!("{key} must name at least one: whoever holds any token of the issuer could call")
        });
    }
    findings.that(!jwt.tenant_claim.is_empty(), &["auth.jwt.tenant_claim"], || {
        "must not be empty".into()
    });
    findings.that(jwt.leeway <= MAX_LEEWAY, &["auth.jwt.leeway"], || {
        format!("must be at most 5m, got {:?}", jwt.leeway)
    });
    Some(jwt)
}

/// All tenants, the anonymous one too where there may be one.
pub(super) fn tenants(
    raw: BTreeMap<String, RawTenant>,
    defaults: &RawTenant,
    listen: &ListenConfig,
    tls: Option<&TlsConfig>,
    auth: &AuthConfig,
    findings: &mut Findings,
) -> Vec<TenantConfig> {
    findings.that(defaults.sans.is_none(), &["tenant_defaults.sans"], || {
        "a certificate is one tenant's".into()
    });
    findings.that(raw.len() <= MAX_TENANTS, &["tenants"], || {
        format!("there are {}, at most {MAX_TENANTS} may be", raw.len())
    });
    let mut tenants: Vec<TenantConfig> = raw
        .into_iter()
        .map(|(name, raw)| {
            let key = format!("tenants.{name}");
            tenant(name, &key, raw.or(defaults), findings)
        })
        .collect();
    if tenants.is_empty() {
        tenant(ANONYMOUS.into(), "tenant_defaults", defaults.clone(), findings);
    }

    let mut owners: HashMap<&str, &str> = HashMap::new();
    for tenant in &tenants {
        let key = format!("tenants.{}.sans", tenant.name);
        for san in &tenant.sans {
            let first = owners.insert(san, &tenant.name);
            findings.that(first.is_none(), &[&key], || {
                format!("{san:?} is tenant {:?}'s already", first.unwrap_or_default())
            });
        }
        let asked = tls.is_some_and(|tls| tls.client_ca.is_some());
        findings.that(tenant.sans.is_empty() || asked, &[&key], || {
            "needs tls.client_ca: clients are not asked for certificates".into()
        });
    }
    let proves = auth.tokens.is_some() || auth.jwt.is_some() || tenants.iter().any(|t| !t.sans.is_empty());
    let takes_anybody = auth.allow_anonymous || !proves;
    if takes_anybody && tenants.iter().all(|t| t.name != ANONYMOUS) {
        let mut raw = defaults.clone();
        let admin_here = listen.admin_grpc.as_deref().is_some_and(is_loopback);
        if !proves && admin_here && raw.services.is_none() {
            // Nobody can be told apart: who enabled AdminService on this machine alone meant whoever is on it.
            let mut services = TenantConfig::default().services;
            services.push(Service::AdminService);
            raw.services = Some(services);
        }
        let mut unheard = Findings::default();
        tenants.push(tenant(ANONYMOUS.into(), "tenants.anonymous", raw, &mut unheard));
        tenants.sort_by(|a, b| a.name.cmp(&b.name));
    }
    tenants
}

fn tenant(name: String, key: &str, raw: RawTenant, findings: &mut Findings) -> TenantConfig {
    let default = TenantConfig::default();
    let well_named = (1..=MAX_TENANT_NAME_BYTES).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    findings.that(well_named, &[key], || {
        format!("a tenant's name is 1 to {MAX_TENANT_NAME_BYTES} letters, digits, - and _, got {name:?}")
    });
    let tenant = TenantConfig {
        name,
        sans: raw.sans.unwrap_or_default(),
        services: raw.services.unwrap_or(default.services),
        models: raw.models.unwrap_or(default.models),
        weight: raw.weight.unwrap_or(default.weight),
        requests_per_second: raw.requests_per_second,
        tokens_per_minute: raw.tokens_per_minute,
        max_concurrent: raw.max_concurrent,
        queue_share: raw.queue_share.unwrap_or(default.queue_share),
    };
    let mut that = |holds: bool, part: &str, message: &dyn Fn() -> String| {
        let (own, common) = (format!("{key}.{part}"), format!("tenant_defaults.{part}"));
        findings.that(holds, &[&own, &common], message);
    };
    for san in &tenant.sans {
        let known = SAN_KINDS.iter().any(|kind| san.starts_with(kind));
        that(known, "sans", &|| {
            format!("{san:?} must begin with one of {}", SAN_KINDS.join(", "))
        });
    }
    that((1..=1000).contains(&tenant.weight), "weight", &|| {
        format!("must be between 1 and 1000, got {}", tenant.weight)
    });
    let rate = tenant.requests_per_second.unwrap_or(1.0);
    that(rate > 0.0 && rate <= 1e6, "requests_per_second", &|| {
        format!("must be above 0 and at most 1000000, got {rate}")
    });
    let tokens = tenant.tokens_per_minute.unwrap_or(1);
    that((1..=1 << 40).contains(&tokens), "tokens_per_minute", &|| {
        format!("must be at least 1, got {tokens}")
    });
    that(tenant.max_concurrent != Some(0), "max_concurrent", &|| {
        "must be at least 1, got 0".into()
    });
    let share = tenant.queue_share;
    that(share > 0.0 && share <= 1.0, "queue_share", &|| {
        format!("must be above 0 and at most 1, got {share}")
    });
    tenant
}

/// Whoever reaches the port would be served, and the port is not this machine's alone: the operator must have said so.
pub(super) fn anonymity(
    listen: &ListenConfig,
    auth: &AuthConfig,
    tenants: &[TenantConfig],
    findings: &mut Findings,
) {
    let proves = auth.tokens.is_some() || auth.jwt.is_some() || tenants.iter().any(|t| !t.sans.is_empty());
    if proves || auth.allow_anonymous {
        return;
    }
    let addresses = [
        ("listen.grpc", Some(&listen.grpc)),
        ("listen.admin_grpc", listen.admin_grpc.as_ref()),
    ];
    for (key, address) in addresses {
        let Some(address) = address else { continue };
        findings.that(is_loopback(address), &[key], || {
            format!(
                "{address} can be reached from other machines, and callers need not say who they are: configure \
                 auth.tokens, auth.jwt or client certificates (tls.client_ca and sans of tenants), or set \
                 auth.allow_anonymous = true if whoever reaches the port may use it"
            )
        });
    }
}

fn is_loopback(address: &str) -> bool {
    match address.parse::<SocketAddr>() {
        Ok(address) => match address.ip() {
            IpAddr::V6(ip) => ip.is_loopback() || ip.to_ipv4_mapped().is_some_and(|ip| ip.is_loopback()),
            IpAddr::V4(ip) => ip.is_loopback(),
        },
        Err(_) => address
            .rsplit_once(':')
            .is_some_and(|(host, _)| host.eq_ignore_ascii_case("localhost")),
    }
}
