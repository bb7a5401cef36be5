//! What a configuration may say, where it comes from, and what is refused.

use std::ffi::OsString;
use std::path::PathBuf;

use baichuan_engine::{CacheBudget, CacheConfig, EngineConfig};

use super::*;

/// A folder that passes for a checkpoint, a configuration file, and what else a configuration is made of.
struct Case {
    dir: tempfile::TempDir,
    inputs: Inputs,
}

fn case(toml: &str) -> Case {
    let dir = tempfile::tempdir().unwrap();
    for name in ["one", "two"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    let file = dir.path().join("server.toml");
    let text = toml.replace("DIR", &dir.path().display().to_string());
    std::fs::write(&file, text).unwrap();
    let inputs = Inputs {
        file: Some(file),
        models_must_exist: true,
        ..Inputs::default()
    };
    Case { dir, inputs }
}

impl Case {
    fn env(mut self, name: &str, value: &str) -> Self {
        self.inputs
            .env
            .push((OsString::from(name), OsString::from(value)));
        self
    }

    fn flag(mut self, name: &str, key: &str, value: &str) -> Self {
        self.inputs.flags.push(Flag {
            name: name.into(),
            key: key.into(),
            value: value.into(),
        });
        self
    }

    fn load(&self) -> Config {
        load(&self.inputs).unwrap_or_else(|e| panic!("{e}"))
    }

    fn error(&self) -> String {
        load(&self.inputs)
            .expect_err("a bad configuration passed")
            .to_string()
    }
}

const ONE: &str = "model.path = 'DIR/one'\n";

#[test]
fn an_unset_key_has_its_default_and_the_model_its_folders_name() {
    let config = case(ONE).load();
    assert_eq!(config.default_model, "one");
    assert_eq!(config.listen.grpc, "127.0.0.1:50051");
    assert_eq!(config.grpc, GrpcConfig::default());
    assert_eq!(config.models[0].engine, EngineConfig::default());
}

#[test]
fn flags_win_over_the_environment_and_the_environment_over_the_file() {
    let toml = format!("{ONE}engine.max_sequences = 1\nengine.max_waiting = 1\nengine.event_buffer = 1");
    let config = case(&toml)
        .env("BAICHUAN_ENGINE__MAX_WAITING", "2")
        .env("BAICHUAN_ENGINE__EVENT_BUFFER", "2")
        .flag("--set", "engine.event_buffer", "3")
        .load();
    let engine = &config.models[0].engine;
    assert_eq!(
        (engine.max_sequences, engine.max_waiting, engine.event_buffer),
        (1, 2, 3)
    );
}

#[test]
fn a_later_flag_wins_over_an_earlier_one() {
    let config = case(ONE)
        .flag("--listen", "listen.grpc", "127.0.0.1:1")
        .flag("--set", "listen.grpc", "localhost:2")
        .load();
    assert_eq!(config.listen.grpc, "localhost:2");
}

#[test]
fn a_model_overrides_the_common_engine_settings_and_its_budget_replaces_theirs() {
    let config = case(
        "engine.max_sequences = 5\nengine.cache.bytes = 1000\n\
         [[models]]\npath = 'DIR/one'\n\
         [[models]]\npath = 'DIR/two'\nengine.max_sequences = 6\nengine.cache.context_tokens = 7",
    )
    .load();
    assert_eq!(config.default_model, "one");
    let (one, two) = (&config.models[0].engine, &config.models[1].engine);
    assert_eq!((one.max_sequences, two.max_sequences), (5, 6));
    assert_eq!(one.cache.budget, CacheBudget::Bytes(1000));
    assert_eq!(two.cache.budget, CacheBudget::ContextTokens(7));
}

#[test]
fn a_share_of_the_gpu_stands_beside_the_hosts_and_gives_way_to_an_amount() {
    let config = case(
        "engine.cache.utilization = 0.5\nengine.cache.gpu_memory_utilization = 0.8\n\
         [[models]]\npath = 'DIR/one'\nengine.cache.utilization = 0.4\n\
         [[models]]\npath = 'DIR/two'\nengine.cache.bytes = 7\n",
    )
    .load();
    let (one, two) = (&config.models[0].engine.cache, &config.models[1].engine.cache);
    assert_eq!(
        (one.budget, one.gpu_memory_utilization),
        (CacheBudget::Utilization(0.4), 0.8)
    );
    assert_eq!(two.budget, CacheBudget::Bytes(7));
    let config = case(
        "engine.cache.bytes = 7\n[[models]]\npath = 'DIR/one'\nengine.cache.gpu_memory_utilization = 0.7",
    )
    .load();
    let cache = &config.models[0].engine.cache;
    assert_eq!(
        (cache.budget, cache.gpu_memory_utilization),
        (CacheConfig::default().budget, 0.7)
    );
}

#[test]
fn the_model_flag_replaces_the_path_of_the_only_listed_model() {
    let case = case("[[models]]\nname = 'm'\npath = 'DIR/one'");
    let two = case.dir.path().join("two");
    let config = case.flag("--model", "model.path", two.to_str().unwrap()).load();
    assert_eq!(
        (config.models[0].name.as_str(), &config.models[0].path),
        ("m", &two)
    );
}

#[test]
fn the_effective_configuration_reads_back_as_itself() {
    let case = case(
        "grpc.max_connection_age = '1h'\nlisten.admin = 'off'\nshutdown.drain_delay = '1500ms'\n\
         [[models]]\npath = 'DIR/one'\ndtype = 'bf16'\nengine.cache.global_blocks = 1\nengine.cache.window_blocks = 2\n\
         [[models]]\npath = 'DIR/two'\nengine.max_context = 99",
    );
    let config = case.load();
    let file = case.dir.path().join("effective.toml");
    std::fs::write(&file, config.to_toml().unwrap()).unwrap();
    let inputs = Inputs {
        file: Some(file),
        ..Inputs::default()
    };
    assert_eq!(load(&inputs).unwrap(), config);
}

#[test]
fn identities_read_back_as_themselves_too() {
    let case = case(&format!(
        "{ONE}listen.admin_grpc = '127.0.0.1:1'\n\
         tls.cert = 'c.pem'\ntls.key = 'k.pem'\ntls.client_ca = 'ca.pem'\n\
         auth.tokens = 't.toml'\nauth.allow_anonymous = true\nauth.open_health = false\n\
         auth.jwt.jwks = 'j.json'\nauth.jwt.issuers = ['i']\nauth.jwt.audiences = ['a']\n\
         tenant_defaults.weight = 3\ntenant_defaults.tokens_per_minute = 7\n\
         tenants.a.sans = ['dns:a']\ntenants.b.weight = 2\ntenants.b.queue_share = 0.5"
    ));
    let config = case.load();
    let [a, anonymous, b] = &config.tenants[..] else {
        panic!("{:?}", config.tenants)
    };
    assert_eq!((a.weight, b.weight, anonymous.name.as_str()), (3, 2, ANONYMOUS));
    assert_eq!((b.tokens_per_minute, b.queue_share), (Some(7), 0.5));
    let file = case.dir.path().join("effective.toml");
    std::fs::write(&file, config.to_toml().unwrap()).unwrap();
    let inputs = Inputs {
        file: Some(file),
        ..Inputs::default()
    };
    assert_eq!(load(&inputs).unwrap(), config);
}

#[test]
fn what_contradicts_itself_about_identities_is_named() {
    let jwt = "auth.jwt.jwks = 'j'\nauth.jwt.issuers = ['i']\nauth.jwt.audiences = ['a']\n";
    for (toml, key, says) in [
        ("tls.cert = 'c'", "tls.cert", "both tls.cert and tls.key"),
        (
            "tls.cert = 'c'\ntls.key = 'k'\ntls.client_auth = 'optional'",
            "tls.client_auth",
            "tls.client_ca",
        ),
        ("auth.jwt.issuers = ['i']", "auth.jwt.issuers", "auth.jwt.jwks"),
        (
            "auth.jwt.jwks = 'j'\nauth.jwt.issuers = ['i']",
            "auth.jwt.jwks",
            "auth.jwt.audiences",
        ),
        (
            &format!("{jwt}auth.jwt.algorithms = ['HS256']"),
            "auth.jwt.algorithms[0]",
            "HS256",
        ),
        (
            &format!("{jwt}auth.jwt.algorithms = []"),
            "auth.jwt.algorithms",
            "at least one",
        ),
        (
            &format!("{jwt}auth.jwt.leeway = '1h'"),
            "auth.jwt.leeway",
            "at most 5m",
        ),
        ("tenants.a.sans = ['dns:a']", "tenants.a.sans", "tls.client_ca"),
        ("tenants.a.sans = ['a']", "tenants.a.sans", "dns:"),
        (
            "tenant_defaults.sans = ['dns:a']",
            "tenant_defaults.sans",
            "one tenant's",
        ),
        ("tenants.'a b'.weight = 1", "tenants.a b", "letters"),
        ("tenants.a.weight = 0", "tenants.a.weight", "got 0"),
        ("tenant_defaults.weight = 0", "tenant_defaults.weight", "got 0"),
        ("tenants.a.queue_share = 1.5", "tenants.a.queue_share", "got 1.5"),
        (
            "tenants.a.requests_per_second = 0",
            "tenants.a.requests_per_second",
            "above 0",
        ),
        (
            "tenants.a.tokens_per_minute = 0",
            "tenants.a.tokens_per_minute",
            "got 0",
        ),
        (
            "tenants.a.max_concurrent = 0",
            "tenants.a.max_concurrent",
            "got 0",
        ),
        (
            "tenants.a.services = ['Everything']",
            "tenants.a.services[0]",
            "Everything",
        ),
        ("tenants.a.password = 'x'", "tenants.a.password", "unknown field"),
        ("reload.interval = '0s'", "reload.interval", "more than 0"),
        (
            "listen.admin_grpc = '127.0.0.1:50051'",
            "listen.admin_grpc",
            "both listeners",
        ),
        ("listen.grpc = '0.0.0.0:1'", "listen.grpc", "allow_anonymous"),
        (
            "listen.admin_grpc = '[::]:1'",
            "listen.admin_grpc",
            "allow_anonymous",
        ),
    ] {
        let error = case(&format!("{ONE}{toml}")).error();
        assert!(
            error.contains(&format!("{key}: ")) && error.contains(says),
            "{toml}\n{error}"
        );
    }
}

#[test]
fn who_proves_themselves_may_come_from_anywhere() {
    for toml in [
        "auth.tokens = 't'",
        "auth.jwt.jwks = 'j'\nauth.jwt.issuers = ['i']\nauth.jwt.audiences = ['a']",
        "tls.cert = 'c'\ntls.key = 'k'\ntls.client_ca = 'a'\ntenants.a.sans = ['dns:a']",
        "auth.allow_anonymous = true",
    ] {
        let config = case(&format!("{ONE}listen.grpc = '0.0.0.0:1'\n{toml}")).load();
        let anonymous = config.tenants.iter().any(|t| t.name == ANONYMOUS);
        assert_eq!(anonymous, config.auth.allow_anonymous, "{toml}");
        let administers = |t: &TenantConfig| t.services.contains(&Service::AdminService);
        assert!(!config.tenants.iter().any(administers), "{toml}");
    }
}

#[test]
fn a_bad_key_or_value_is_an_error_that_names_key_value_and_file() {
    for (toml, key, says) in [
        (
            "engine.max_sequencse = 1",
            "engine.max_sequencse",
            "unknown field",
        ),
        ("bogus = 1", "bogus", "unknown field"),
        ("engine.max_sequences = 0", "engine.max_sequences", "got 0"),
        ("engine.max_sequences = -1", "engine.max_sequences", "-1"),
        ("engine.max_sequences = 2.7", "engine.max_sequences", "2.7"),
        (
            "engine.max_sequences = '7'",
            "engine.max_sequences",
            "string \"7\"",
        ),
        ("engine.max_context = 1", "engine.max_context", "got 1"),
        (
            "engine.scrub_freed = 1",
            "engine.scrub_freed",
            "expected a boolean",
        ),
        (
            "engine.prefill_chunk_tokens = 999",
            "engine.prefill_chunk_tokens",
            "got 999",
        ),
        (
            "engine.cache.block_tokens = 12",
            "engine.cache.block_tokens",
            "got 12",
        ),
        (
            "engine.cache.utilization = 1.5",
            "engine.cache.utilization",
            "got 1.5",
        ),
        (
            "engine.cache.utilization = nan",
            "engine.cache.utilization",
            "NaN",
        ),
        (
            "engine.cache.gpu_memory_utilization = 1.1",
            "engine.cache.gpu_memory_utilization",
            "got 1.1",
        ),
        (
            "engine.cache.gpu_memory_utilization = 0.5\nengine.cache.bytes = 9",
            "engine.cache.gpu_memory_utilization",
            "contradicts bytes",
        ),
        ("engine.cache.bytes = 0", "engine.cache.bytes", "more than 0"),
        (
            "engine.cache.global_blocks = 3",
            "engine.cache.global_blocks",
            "needs window_blocks",
        ),
        (
            "engine.cache.bytes = 9\nengine.cache.context_tokens = 9",
            "engine.cache.context_tokens",
            "contradicts bytes",
        ),
        ("engine.max_sequences = 513", "engine.max_sequences", "513"),
        ("engine.max_step_tokens = 63", "engine.max_step_tokens", "63"),
        ("model.dtype = 'int3'", "model.dtype", "int3"),
        ("model.dtype = 'int8'", "model.dtype", "int8"),
        ("model.cache_dtype = 'q8_0'", "model.cache_dtype", "`int8`"),
        ("model.isq = 'Q3_7'", "model.isq", "Q8_0, Q8_1"),
        ("model.threads = 0", "model.threads", "got 0"),
        ("model.device = 'gpu'", "model.device", "gpu"),
        ("model.device_map = '0:x'", "model.device_map", "0:x"),
        (
            "model.device = 'cpu'\nmodel.device_map = '0:2'",
            "model.device_map",
            "device is cpu",
        ),
        ("model.name = 'a b'", "model.name", "a b"),
        ("default_model = 'else'", "default_model", "else"),
        ("listen.grpc = 'nowhere'", "listen.grpc", "nowhere"),
        ("listen.grpc = 'host:99999'", "listen.grpc", "99999"),
        ("listen.grpc = 'h:1'\nlisten.admin = 'h:1'", "listen.admin", "h:1"),
        ("grpc.max_frame_bytes = 1", "grpc.max_frame_bytes", "got 1"),
        (
            "grpc.initial_stream_window_bytes = 4294967295",
            "grpc.initial_stream_window_bytes",
            "4294967295",
        ),
        (
            "grpc.keepalive_interval = '0s'",
            "grpc.keepalive_interval",
            "more than 0",
        ),
        ("grpc.keepalive_interval = 30", "grpc.keepalive_interval", "30"),
        (
            "grpc.max_connection_age = 'never'",
            "grpc.max_connection_age",
            "off",
        ),
        ("requests.text_threads = 0", "requests.text_threads", "got 0"),
        (
            "shutdown.drain_timeout = '1 fortnight'",
            "shutdown.drain_timeout",
            "fortnight",
        ),
        (
            "shutdown.drain_timeout = '10s'\nshutdown.hard_timeout = '9s'",
            "shutdown.hard_timeout",
            "got 9s",
        ),
        ("log.filter = 'a=loud'", "log.filter", "a=loud"),
        ("log.format = 'xml'", "log.format", "xml"),
    ] {
        let case = case(&format!("{ONE}{toml}"));
        let error = case.error();
        let file = case.dir.path().join("server.toml");
        assert!(error.starts_with(&format!("{key}: ")), "{toml}: {error}");
        assert!(error.contains(says), "{toml}: {error}");
        assert!(error.contains(file.to_str().unwrap()), "{toml}: {error}");
    }
}

#[test]
fn a_topology_is_read_with_the_configuration_and_its_bad_entry_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("topology.yml");
    let with = |text: &str, more: &str| {
        std::fs::write(&path, text).unwrap();
        case(&format!("{ONE}model.topology = {:?}\n{more}", path.display()))
    };
    let config = with("0-2: {isq: Q4K}\n3: {device: cpu}", "").load();
    let topology = &config.models[0].placement.topology;
    assert_eq!(
        topology.layer(1).and_then(|range| range.isq),
        Some(baichuan_engine::IsqType::Q4K)
    );
    assert_eq!(config.models[0].topology.as_deref(), Some(path.as_path()));
    for (text, more, says) in [
        ("4-2: {isq: Q4K}", "", "entry \"4-2\""),
        ("0: {isq: Q9}", "", "entry \"0\""),
        (
            "0: {device: 'cuda[1]'}",
            "model.device_map = '0:2'",
            "device_map = 0:2",
        ),
    ] {
        let error = with(text, more).error();
        assert!(error.starts_with("model.topology: "), "{error}");
        assert!(error.contains(says) && error.contains("topology.yml"), "{error}");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(
        case(&format!("{ONE}model.topology = {:?}", path.display()))
            .error()
            .contains("topology.yml")
    );
}

#[test]
fn every_problem_is_told_at_once() {
    let error = case(&format!("{ONE}engine.max_waiting = 0\nrequests.text_queue = 0")).error();
    assert!(
        error.contains("engine.max_waiting") && error.contains("requests.text_queue"),
        "{error}"
    );
}

#[test]
fn a_bad_variable_is_named() {
    for (name, value, key) in [
        ("BAICHUAN_ENGINE__MAX_WAITING", "many", "engine.max_waiting"),
        ("BAICHUAN_ENGIN__MAX_WAITING", "1", "engin"),
        ("BAICHUAN_LISTEN__GRPC", "7", "listen.grpc"),
        ("BAICHUAN___X", "7", ".x"),
    ] {
        let error = case(ONE).env(name, value).error();
        assert!(error.starts_with(&format!("{key}: ")), "{error}");
        assert!(error.contains(&format!("environment variable {name}")), "{error}");
    }
}

#[test]
fn a_bad_flag_is_named() {
    let error = case(ONE).flag("--dtype", "model.dtype", "f64").error();
    assert!(
        error.starts_with("model.dtype: ") && error.ends_with("(--dtype)"),
        "{error}"
    );
}

#[test]
fn a_models_mistake_names_its_place_in_the_list() {
    let two = "[[models]]\npath = 'DIR/one'\n[[models]]\n";
    for (toml, key) in [
        ("path = 'DIR/none'", "models[1].path"),
        ("path = 'DIR/one'", "models[1].path"),
        ("path = 'DIR/two'\nname = 'one'", "models[1].name"),
        ("name = 'm'", "models[1]"),
        (
            "path = 'DIR/two'\nengine.max_waiting = 0",
            "models[1].engine.max_waiting",
        ),
        ("path = 'DIR/two'\ncolour = 'red'", "models[1].colour"),
    ] {
        let error = case(&format!("{two}{toml}")).error();
        assert!(error.starts_with(&format!("{key}: ")), "{toml}: {error}");
    }
}

#[test]
fn settings_for_one_model_contradict_a_list_of_several() {
    let toml = "model.dtype = 'f16'\n[[models]]\npath = 'DIR/one'\n[[models]]\npath = 'DIR/two'";
    let error = case(toml).error();
    assert!(
        error.starts_with("model.dtype: ") && error.contains("lists 2"),
        "{error}"
    );
}

#[test]
fn variables_that_kubernetes_sets_for_a_service_called_baichuan_are_not_ours() {
    case(ONE)
        .env("BAICHUAN_SERVICE_HOST", "10.0.0.1")
        .env("BAICHUAN_SERVICE_PORT_GRPC", "50051")
        .env("BAICHUAN_PORT", "tcp://10.0.0.1:50051")
        .env("BAICHUAN_PORT_50051_TCP_ADDR", "10.0.0.1")
        .env("BAICHUAN_SERVE_PORT_50051_TCP", "tcp://10.0.0.1:50051")
        .load();
}

#[test]
fn a_quoted_variable_is_text_whatever_it_looks_like() {
    let config = case(ONE).env("BAICHUAN_MODEL__NAME", "'123'").load();
    assert_eq!(config.models[0].name, "123");
}

#[test]
fn a_missing_or_broken_file_is_named() {
    let mut broken = case("engine = [");
    assert!(broken.error().contains("server.toml"), "{}", broken.error());
    broken.inputs.file = Some(PathBuf::from("/nonexistent/server.toml"));
    assert!(broken.error().contains("/nonexistent/server.toml"));
}

#[test]
fn without_a_model_the_default_checkpoint_is_found_above_the_program_or_the_places_are_listed() {
    let mut case = case("");
    case.inputs.places.exe = Some(case.dir.path().join("target/debug/baichuan-server"));
    let error = case.error();
    let model = case.dir.path().join("models").join(DEFAULT_MODEL_DIR);
    assert!(error.contains(model.to_str().unwrap()), "{error}");
    assert!(error.contains("/usr/share/baichuan-serve/models"), "{error}");

    std::fs::create_dir_all(&model).unwrap();
    std::fs::write(model.join("config.json"), "{}").unwrap();
    assert_eq!(case.load().models[0].path, model);
}

#[test]
fn the_configured_folder_of_models_is_looked_at_first() {
    let case = case("models_dir = 'DIR/mine'");
    let model = case.dir.path().join("mine").join(DEFAULT_MODEL_DIR);
    std::fs::create_dir_all(&model).unwrap();
    std::fs::write(model.join("config.json"), "{}").unwrap();
    assert_eq!(case.load().models[0].path, model);
}

#[test]
fn every_sample_configuration_is_good() {
    let samples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/config");
    let files: Vec<PathBuf> = std::fs::read_dir(samples)
        .unwrap()
        .map(|f| f.unwrap().path())
        .collect();
    assert!(!files.is_empty());
    for file in files {
        if file.extension().is_some_and(|ending| ending == "yml") {
            let topology = std::fs::read_to_string(&file)
                .unwrap()
                .parse::<baichuan_engine::Topology>();
            assert!(!topology.unwrap().is_empty(), "{file:?}");
            continue;
        }
        let inputs = Inputs {
            file: Some(file),
            ..Inputs::default()
        };
        load(&inputs).unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
fn variables_of_the_client_and_of_tests_are_not_keys() {
    case(ONE)
        .env("BAICHUAN_SERVER", "h:1")
        .env("BAICHUAN_TOKEN", "t")
        .env("BAICHUAN_CONFIG", "f")
        .env("BAICHUAN_TEST_VENV", "v")
        .load();
}
