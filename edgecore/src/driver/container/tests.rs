//! The driver, and an engine that only pretends: there, away, and beside another one.

use std::{
    collections::{BTreeMap, HashMap},
    slice::from_ref,
};

use proto::object::ReleaseRef;
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt as _, net::UnixStream};

use super::{
    api::tests::{Fake, say},
    *,
};
use crate::{
    driver::{Driver as _, DriverError, Side},
    fetch::tests::env,
};

const GRACE: Duration = Duration::from_secs(1);

/// Has every image, and containers that run until they are told otherwise.
pub(in crate::driver) struct Pretend {
    fake: Fake,
    containers: Containers,
}

type Containers = Arc<Mutex<BTreeMap<String, Made>>>;

/// A container.
#[derive(Debug, Clone)]
struct Made {
    name: String,
    labels: HashMap<String, String>,
    status: &'static str,
}

impl Pretend {
    pub(in crate::driver) fn new() -> Pretend {
        let containers = Containers::default();
        let theirs = containers.clone();
        let fake = Fake::new(move |line, stream| answer(theirs.clone(), line, stream));
        Pretend { fake, containers }
    }

    pub(in crate::driver) fn socket(&self) -> PathBuf {
        self.fake.socket()
    }

    fn elsewhere(&self) -> PathBuf {
        self.socket().with_extension("away")
    }

    /// As an engine that is stopped and leaves its containers alone.
    pub(in crate::driver) fn go_away(&self) {
        std::fs::rename(self.socket(), self.elsewhere()).unwrap();
    }

    fn come_back(&self) {
        std::fs::rename(self.elsewhere(), self.socket()).unwrap();
    }

    /// How many run.
    pub(in crate::driver) fn running(&self) -> usize {
        self.containers.lock().unwrap().values().filter(|made| made.status == "running").count()
    }

    /// All end of their own accord.
    fn end_all(&self) {
        self.containers.lock().unwrap().values_mut().for_each(|made| made.status = "exited");
    }
}

async fn answer(containers: Containers, line: String, mut stream: UnixStream) {
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
    let path: Vec<&str> = target.split('?').next().unwrap().split('/').skip(2).collect();
    let body = match path.as_slice() {
        ["containers", "create"] => {
            let asked = document(&mut stream).await;
            let name = target.split("name=").nth(1).unwrap().to_owned();
            let labels = serde_json::from_value(asked["Labels"].clone()).unwrap();
            let mut containers = containers.lock().unwrap();
            let id = format!("c{}", containers.len());
            containers.insert(id.clone(), Made { name, labels, status: "created" });
            Some(json!({ "Id": id }))
        }
        ["containers", "json"] => {
            let containers = containers.lock().unwrap();
            let all = containers.iter().filter(|(_, made)| made.status != "removed");
            Some(all.map(|(id, made)| json!({ "Id": id, "Created": 1, "Labels": made.labels })).collect())
        }
        ["containers", id, "wait"] => loop {
            if containers.lock().unwrap()[*id].status != "running" {
                break Some(json!({ "StatusCode": 0 }));
            }
            sleep(Duration::from_millis(10)).await;
        },
        ["containers", id, rest @ ..] => {
            let mut containers = containers.lock().unwrap();
            let made = containers.get_mut(*id).unwrap();
            match rest.first().copied().unwrap_or(&method) {
                "json" => {}
                "start" => made.status = "running",
                "kill" => made.status = "exited",
                "rename" => made.name = target.split("name=").nth(1).unwrap().to_owned(),
                "DELETE" => made.status = "removed",
                other => panic!("{other} is asked of a container"),
            }
            Some(details(made))
        }
        ["images", "json"] => Some(json!([])),
        ["images", ..] => Some(json!({ "Id": "sha256:12", "RepoDigests": [image()] })),
        _ => None,
    };
    match body {
        Some(body) => say(&mut stream, "200 OK", &body.to_string()).await,
        None => say(&mut stream, "404 Not Found", r#"{"message": "what?"}"#).await,
    }
}

/// What is sent along.
async fn document(stream: &mut UnixStream) -> Value {
    let mut text = vec![];
    loop {
        text.push(stream.read_u8().await.unwrap());
        if let Ok(document) = serde_json::from_slice(&text) {
            return document;
        }
    }
}

fn details(made: &Made) -> Value {
    let state = json!({ "Status": made.status, "Running": made.status == "running", "ExitCode": 3,
        "StartedAt": "2026-05-01T10:00:00Z", "FinishedAt": "2026-05-01T10:00:09Z" });
    json!({ "Name": format!("/{}", made.name), "State": state, "Config": { "Labels": made.labels } })
}

fn image() -> String {
    format!("registry.example/vision@{}", Digest::of(b"image"))
}

pub(in crate::driver) fn app() -> Name {
    "vision".parse().unwrap()
}

/// An instance, as a container or as a process.
pub(in crate::driver) fn spec(folder: &Path, is_container: bool) -> InstanceSpec {
    let workload = match is_container {
        true => json!({ "container": { "registry": image() } }),
        false => json!({ "command": "/bin/true" }),
    };
    InstanceSpec {
        app: app(),
        side: Side::A,
        replica: 0,
        release: ReleaseRef { version: "1".parse().unwrap(), digest: Digest::of(b"1") },
        tree: folder.join("tree"),
        data: folder.join("data"),
        run: None,
        workload: serde_json::from_value(workload).unwrap(),
        gpus: vec![],
        uses: BTreeMap::new(),
    }
}

fn driver(folder: &Path, engines: &[&Pretend]) -> ContainerDriver {
    ContainerDriver::new(&folder.join("containers"), engines.iter().map(|engine| engine.socket()).collect(), env())
}

/// Notes something else of the app.
fn renote(folder: &Path, change: impl FnOnce(Value) -> String) {
    let mark = folder.join("containers").join(app().as_str());
    let noted = serde_json::from_slice(&std::fs::read(&mark).unwrap()).unwrap();
    std::fs::write(&mark, change(noted)).unwrap();
}

fn assert_away<T: std::fmt::Debug>(result: Result<T, DriverError>, engine: &Pretend) {
    let said = result.unwrap_err().to_string();
    let expected = format!("the engine at {} is away", engine.socket().display());
    assert!(said.contains(&expected) && said.contains("a container of vision may run"), "{said}");
}

#[tokio::test]
async fn an_engine_that_is_away_is_no_end() {
    let (folder, engine) = (tempfile::tempdir().unwrap(), Pretend::new());
    let (driver, spec, app) = (driver(folder.path(), &[&engine]), spec(folder.path(), true), app());
    driver.prepare(&spec).await.unwrap();
    driver.start(&spec).await.unwrap();
    engine.go_away();
    // Another agent finds it as the one before left it.
    let driver = self::driver(folder.path(), &[&engine]);
    assert_away(driver.stop(&app, GRACE).await, &engine);
    assert_away(driver.inspect(&app).await, &engine);
    assert_away(driver.remove(&app).await, &engine);
    assert_away(driver.start(&spec).await, &engine);
    assert_eq!(driver.list().await.unwrap(), from_ref(&app), "whoever is to remove it knows of it");
    let refused = driver.prepare(&spec).await.unwrap_err();
    assert!(refused.reason == "NoContainerEngine" && refused.message.contains("is away"), "{refused}");
    // It comes back, and so does the container.
    engine.come_back();
    assert_eq!(driver.inspect(&app).await.unwrap().unwrap().exit, None);
    // Of what ran in another boot nothing is left.
    engine.go_away();
    renote(folder.path(), |mut noted| {
        noted["started"]["bootId"] = "another".into();
        noted.to_string()
    });
    assert_eq!(driver.inspect(&app).await.unwrap(), None);
    driver.stop(&app, GRACE).await.unwrap();
    driver.remove(&app).await.unwrap();
    assert!(driver.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_was_seen_to_end_needs_no_engine() {
    let (folder, engine) = (tempfile::tempdir().unwrap(), Pretend::new());
    let (driver, spec, app) = (driver(folder.path(), &[&engine]), spec(folder.path(), true), app());
    for ends in ["asked to", "while it is looked at", "while it is waited for"] {
        driver.start(&spec).await.unwrap();
        assert_eq!(engine.running(), 1);
        match ends {
            "asked to" => driver.stop(&app, GRACE).await.unwrap(),
            "while it is looked at" => {
                engine.end_all();
                assert!(driver.inspect(&app).await.unwrap().unwrap().exit.is_some());
            }
            _ => {
                let (_, exit) = tokio::join!(async { engine.end_all() }, driver.wait(&app));
                assert_eq!(exit.unwrap().code, Some(3));
            }
        }
        engine.go_away();
        assert_eq!(driver.inspect(&app).await.unwrap(), None, "{ends}");
        driver.stop(&app, GRACE).await.unwrap();
        driver.remove(&app).await.unwrap();
        engine.come_back();
    }
}

#[tokio::test]
async fn what_an_older_agent_started_is_noted_when_it_is_seen() {
    let (folder, engine) = (tempfile::tempdir().unwrap(), Pretend::new());
    let (driver, spec, app) = (driver(folder.path(), &[&engine]), spec(folder.path(), true), app());
    driver.start(&spec).await.unwrap();
    renote(folder.path(), |_| String::new());
    engine.go_away();
    driver.stop(&app, GRACE).await.unwrap(); // as that one did: nobody knows better
    engine.come_back();
    assert_eq!(driver.inspect(&app).await.unwrap().unwrap().exit, None);
    engine.go_away();
    assert_away(driver.stop(&app, GRACE).await, &engine);
}

#[tokio::test]
async fn an_app_stays_with_its_engine_when_another_one_comes() {
    let (folder, docker, podman) = (tempfile::tempdir().unwrap(), Pretend::new(), Pretend::new());
    let (driver, spec, app) = (driver(folder.path(), &[&docker, &podman]), spec(folder.path(), true), app());
    docker.go_away();
    driver.start(&spec).await.unwrap();
    docker.come_back();
    assert_eq!(driver.inspect(&app).await.unwrap().unwrap().exit, None);
    assert_eq!(driver.list().await.unwrap(), from_ref(&app));
    podman.go_away();
    assert_away(driver.start(&spec).await, &podman);
    podman.come_back();
    driver.start(&spec).await.unwrap();
    assert_eq!((docker.running(), podman.running()), (0, 1));
    // An operator who names another engine gets it, and nothing stays behind.
    let renamed = self::driver(folder.path(), &[&docker]);
    renamed.start(&spec).await.unwrap();
    assert_eq!((docker.running(), podman.running()), (1, 0));
    driver.stop(&app, GRACE).await.unwrap();
    assert_eq!((docker.running(), podman.running()), (0, 0));
    // When its engine was uninstalled, the other one will do.
    docker.go_away();
    driver.start(&spec).await.unwrap();
    assert_eq!((docker.running(), podman.running()), (0, 1));
}
