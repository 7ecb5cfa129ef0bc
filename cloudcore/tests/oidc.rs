//! A person logs in at a real OpenID Connect provider, by the programs as they ship: `oidc-provider-mock`, which is
//! Authlib's provider without a password. `.ci/test` installs it into `target/oidc`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Arc,
    time::Duration,
};

use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::Value;

/// A process that ends with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn provider() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/oidc/bin/oidc-provider-mock");
    if own.exists() { own } else { "oidc-provider-mock".into() }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A hub, a provider that it believes, and a folder with what the command line remembers.
struct Stage {
    folder: tempfile::TempDir,
    url: String,
    issuer: String,
    _hub: Running,
    provider: Option<Running>,
}

fn start_provider(port: u16) -> Running {
    let person = |name: &str, group: &str| {
        format!(r#"{{"sub": "{name}", "email": "{name}@example.com", "groups": ["{group}"]}}"#)
    };
    let mut command = Command::new(provider());
    command.args(["--port", &port.to_string()]);
    for person in [person("alice", "hz"), person("bob", "strangers")] {
        command.args(["--user-claims", &person]);
    }
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    Running(child.expect("oidc-provider-mock is not there; `bash .ci/test` installs it into target/oidc"))
}

impl Stage {
    async fn start() -> Stage {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("hub");
        let port = free_port();
        let issuer = format!("http://127.0.0.1:{port}");
        let made = Command::new(env!("CARGO_BIN_EXE_cloudcore"))
            .args(["init", "--fleet", "hz", "--link-listen", "127.0.0.1:0", "--api-listen", "127.0.0.1:0", "--data"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let oidc = format!(
            "oidc:\n  issuer: {issuer}\n  clientId: crossdock\n  bindings:\n  - group: hz\n    role: operator\n    sites: [hz-01]\n"
        );
        let yaml = data.join("hub.yaml");
        fs::write(&yaml, fs::read_to_string(&yaml).unwrap() + &oidc).unwrap();
        let mut hub = Command::new(env!("CARGO_BIN_EXE_cloudcore"))
            .args(["serve", "--data"])
            .arg(&data)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(hub.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let api = ready.trim().rsplit_once("api=").expect("the hub says where it is").1;
        let url = format!("https://{api}");
        let provider = Some(start_provider(port));
        let stage = Stage { folder, url, issuer, _hub: Running(hub), provider };
        stage.provider_answers().await;
        stage
    }

    async fn provider_answers(&self) {
        let http = http();
        let discovery = format!("{}/.well-known/openid-configuration", self.issuer);
        let ready = async {
            while http.get(&discovery).send().await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), ready).await.expect("the provider starts");
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_crossdock"));
        command.args(args).env("CROSSDOCK_CONFIG", self.contexts()).env_remove("CROSSDOCK_TOKEN");
        command
    }

    fn contexts(&self) -> PathBuf {
        self.folder.path().join("config/contexts.yaml")
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Logs in as a browser does it, with a person who says yes.
    async fn log_in(&self, person: &str) -> Output {
        let ca = self.folder.path().join("hub/ca.pem");
        let args = ["login", &self.url, "--oidc", "--no-browser", "--oidc-client-secret", "s3cret-of-client", "--ca"];
        let mut login = self.command(&args).arg(ca).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(login.stderr.take().unwrap());
        let mut address = String::new();
        while !address.trim().starts_with("http") {
            address.clear();
            assert!(stderr.read_line(&mut address).unwrap() > 0, "it says where to log in");
        }
        let http = http();
        let form = http.post(address.trim()).header("content-type", "application/x-www-form-urlencoded");
        let answer = form.body(format!("sub={person}")).send().await.unwrap();
        assert_eq!(answer.status(), 302, "{}", answer.text().await.unwrap());
        let back = answer.headers()["location"].to_str().unwrap().to_owned();
        assert!(back.starts_with("http://127.0.0.1:"), "{back}");
        let page = http.get(back).send().await.unwrap().text().await.unwrap();
        assert!(page.contains("close this page"), "{page}");
        let mut said = String::new();
        stderr.read_to_string(&mut said).unwrap();
        let output = login.wait_with_output().unwrap();
        Output { stderr: said.into_bytes(), ..output }
    }

    async fn ask(&self, token: &str, path: &str) -> (u16, Value) {
        let pem = fs::read(self.folder.path().join("hub/ca.pem")).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
        let http = client(roots);
        let answer = http.get(format!("{}{path}", self.url)).bearer_auth(token).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or_default())
    }
}

fn client(roots: rustls::RootCertStore) -> reqwest::Client {
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let builder = reqwest::Client::builder().tls_backend_preconfigured(tls);
    builder.redirect(reqwest::redirect::Policy::none()).build().unwrap()
}

fn http() -> reqwest::Client {
    client(rustls::RootCertStore::empty())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn a_person_logs_in_and_has_the_roles_of_its_groups() {
    let mut stage = Stage::start().await;
    let done = stage.log_in("alice").await;
    assert!(done.status.success() && text(&done.stdout).contains("as oidc:alice"), "{done:?}");
    let mode = fs::metadata(stage.contexts()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let me = text(&stage.run(&["auth", "whoami"]).stdout);
    assert!(me.contains("oidc:alice") && me.contains("operator at hz-01") && me.contains("until 20"), "{me}");
    assert!(stage.run(&["get", "nodes"]).status.success());
    assert_eq!(text(&stage.run(&["auth", "can-i", "create", "rollouts", "--site", "hz-01"]).stdout), "yes\n");
    let no = stage.run(&["auth", "can-i", "create", "users"]);
    assert_eq!((text(&no.stdout).as_str(), no.status.code()), ("no\n", Some(8)), "{no:?}");
    let refused = stage.run(&["user", "create", "mallory", "--role", "admin"]);
    assert_eq!(refused.status.code(), Some(8), "{refused:?}");

    // The token is for this hub, unchanged, and for a provider that the hub believes.
    let contexts: Value = serde_saphyr::from_str(&fs::read_to_string(stage.contexts()).unwrap()).unwrap();
    let context = contexts["contexts"].as_object().unwrap().values().next().unwrap();
    assert!(context["oidc"]["refreshToken"].is_string(), "what renews the login is kept");
    let token = context["token"].as_str().unwrap();
    assert_eq!(stage.ask(token, "/api/v1/self").await.1["name"], "oidc:alice");
    let (signed, _) = token.rsplit_once('.').unwrap();
    let (code, answer) = stage.ask(&format!("{signed}.AAAA"), "/api/v1/self").await;
    assert!(code == 401 && answer["message"].as_str().unwrap().contains("signature"), "{answer}");

    let done = stage.log_in("bob").await;
    assert!(done.status.success(), "{done:?}");
    let refused = stage.run(&["get", "nodes"]);
    assert!(refused.status.code() == Some(8) && text(&refused.stderr).contains("oidc:bob has no role"), "{refused:?}");

    // Without its provider the hub goes on with the keys that it knows.
    stage.provider = None;
    assert_eq!(stage.ask(token, "/api/v1/self").await.0, 200);
    let out = stage.run(&["logout"]);
    assert!(out.status.success() && !fs::read_to_string(stage.contexts()).unwrap().contains("eyJ"), "{out:?}");
    assert_eq!(stage.run(&["get", "nodes"]).status.code(), Some(8));

    let admin = fs::read_to_string(stage.folder.path().join("hub/admin.token")).unwrap();
    let (_, audit) = stage.ask(admin.trim(), "/api/v1/audit").await;
    let lines = audit["items"].as_array().unwrap();
    let has = |user: &str, verb: &str, outcome: &str| {
        lines.iter().any(|line| line["user"] == user && line["verb"] == verb && line["outcome"] == outcome)
    };
    assert!(
        has("oidc:alice", "login", "200") && has("oidc:alice", "create", "403") && has("", "login", "401"),
        "{audit}"
    );
    let verified = Command::new(env!("CARGO_BIN_EXE_cloudcore"))
        .args(["audit", "verify"])
        .arg(stage.folder.path().join("hub"))
        .output()
        .unwrap();
    assert!(verified.status.success() && text(&verified.stdout).contains("whole, lines 1 to sha256:"), "{verified:?}");
}

#[tokio::test]
async fn a_hub_that_cannot_ask_its_provider_lets_nobody_in_with_it() {
    let mut stage = Stage::start().await;
    stage.provider = None;
    let ca = stage.folder.path().join("hub/ca.pem");
    let refused = stage.command(&["login", &stage.url, "--oidc", "--no-browser", "--ca"]).arg(ca).output().unwrap();
    assert_eq!(refused.status.code(), Some(8), "{refused:?}");
    let part = |text: &str| data_encoding::BASE64URL_NOPAD.encode(text.as_bytes());
    let token = format!("{}.{}.{}", part(r#"{"alg":"RS256"}"#), part(r#"{"sub":"alice"}"#), part("signature"));
    let (code, answer) = stage.ask(&token, "/api/v1/nodes").await;
    assert!(code == 503 && answer["message"].as_str().unwrap().contains("cannot be asked"), "{answer}");
    let admin = fs::read_to_string(stage.folder.path().join("hub/admin.token")).unwrap();
    assert_eq!(stage.ask(admin.trim(), "/api/v1/nodes").await.0, 200, "the hub's own users are");
}
