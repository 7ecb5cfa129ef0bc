//! Against engines that say what no real one does in time for a test.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    time::{Instant, sleep},
};

use super::*;

const VERSION: &str = r#"{"ApiVersion": "1.51", "MinAPIVersion": "1.24", "Components": [{"Name": "Engine"}]}"#;

/// An engine that answers with what `answer` makes of the first line of a request; `None`: it goes without a word.
pub(in crate::driver::container) struct Fake {
    folder: tempfile::TempDir,
}

impl Fake {
    pub(in crate::driver::container) fn new<F>(answer: impl Fn(String, UnixStream) -> F + Send + 'static) -> Fake
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let fake = Fake { folder: tempfile::tempdir().unwrap() };
        let listener = UnixListener::bind(fake.socket()).unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = vec![];
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let line = String::from_utf8(head).unwrap().lines().next().unwrap().to_owned();
                match line.as_str() {
                    "GET /version HTTP/1.1" => say(&mut stream, "200 OK", VERSION).await,
                    _ => drop(tokio::spawn(answer(line, stream))),
                }
            }
        });
        fake
    }

    pub(in crate::driver::container) fn socket(&self) -> std::path::PathBuf {
        self.folder.path().join("engine.sock")
    }

    pub(in crate::driver::container) async fn api(&self) -> Api {
        Api::at(&self.socket()).await.unwrap()
    }
}

pub(in crate::driver::container) async fn say(stream: &mut UnixStream, status: &str, body: &str) {
    let text = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let _ = stream.write_all(text.as_bytes()).await; // who asked may have gone
}

#[test]
fn each_speaks_the_newest_that_the_other_knows() {
    let engine = |newest: &str, oldest: Option<&str>| {
        let (api_version, min_api_version) = (newest.to_owned(), oldest.map(str::to_owned));
        spoken(&Version { api_version, min_api_version, components: None })
    };
    assert_eq!(engine("1.51", Some("1.24")), Ok(NEWEST));
    assert_eq!(engine("1.41", None), Ok((1, 41)), "an old engine's");
    assert_eq!(engine("1.9", None), Ok((1, 9)), "by number, not by letter");
    assert!(engine("1.99", Some("1.50")).unwrap_err().contains("update the agent"));
    assert!(engine("new", None).is_err());
}

#[test]
fn what_is_odd_in_a_query_is_escaped() {
    let asked = http::target("/x", &[("filters", r#"{"label":["a=b/c&d"]}"#), ("all", "true")]);
    assert_eq!(asked, "/x?filters=%7B%22label%22%3A%5B%22a%3Db%2Fc%26d%22%5D%7D&all=true");
}

#[tokio::test]
async fn the_engines_words_are_handed_on() {
    let fake = Fake::new(|line, mut stream| async move {
        match line.split(' ').nth(1).unwrap() {
            "/v1.44/containers/a/json" => {
                say(&mut stream, "404 Not Found", r#"{"message": "No such container: a"}"#).await
            }
            "/v1.44/containers/b/json" => say(&mut stream, "500 Internal Server Error", "panic\n").await,
            "/v1.44/containers/c/json" => say(&mut stream, "200 OK", r#"{"Name": null}"#).await,
            "/v1.44/containers/d/start" => say(&mut stream, "304 Not Modified", "").await,
            "/v1.44/images/load?quiet=true" => {
                let lines = "{\"stream\":\"half\"}\r\n{\"errorDetail\":{\"message\":\"x\"},\"error\":\"no space left on device\"}\r\n";
                say(&mut stream, "200 OK", lines).await;
            }
            _ => {}
        }
    });
    let api = fake.api().await;
    assert!(api.is_docker());
    let missing = api.container("a").await.unwrap_err();
    assert!(missing.is_missing() && missing.to_string() == "No such container: a", "{missing}");
    assert_eq!(api.container("b").await.unwrap_err().to_string(), "panic");
    let odd = api.container("c").await.unwrap_err().to_string();
    assert!(odd.contains("is not understood"), "{odd}");
    api.start("d").await.unwrap(); // it runs already
    let (sender, receiver) = mpsc::channel(1);
    drop(sender);
    assert_eq!(api.load(receiver).await.unwrap_err().to_string(), "no space left on device");
    let gone = api.info().await.unwrap_err();
    assert!(matches!(gone, ApiError::Broken(_)), "{gone}");
}

#[tokio::test(start_paused = true)]
async fn what_takes_long_may_and_what_does_not_must_not() {
    let fake = Fake::new(|line, mut stream| async move {
        let takes = if line.contains("/images/") && !line.contains("stuck") { 1500 } else { 3600 };
        sleep(std::time::Duration::from_secs(takes)).await;
        let body = if line.starts_with("POST /v1.44/containers/a/wait") { r#"{"StatusCode": 3}"# } else { "{}" };
        say(&mut stream, "200 OK", body).await;
    });
    let api = fake.api().await;
    let begin = Instant::now();
    api.wait("a").await.unwrap();
    let (sender, receiver) = mpsc::channel(1);
    drop(sender);
    api.load(receiver).await.unwrap();
    api.pull("x", None).await.unwrap();
    assert!(begin.elapsed().as_secs() >= 3600 + 2 * 1500, "{:?}", begin.elapsed());
    assert!(matches!(api.pull("stuck", None).await, Err(ApiError::Silent)));
    let begin = Instant::now();
    assert!(matches!(api.info().await, Err(ApiError::Silent)));
    assert!(begin.elapsed().as_secs() < 120, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn no_answer_is_too_long() {
    let fake = Fake::new(|_, mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n[").await; // it may have gone
        while stream.write_all(&[b' '; 1 << 16]).await.is_ok() {}
    });
    let problem = fake.api().await.info().await.unwrap_err().to_string();
    assert!(problem.contains("length limit exceeded"), "{problem}");
}

#[test]
fn a_line_that_is_too_long_ends_with_its_end() {
    let mut lines = Lines::default();
    lines.feed(b"{\"status\": \"").unwrap();
    for _ in 0..100 {
        lines.feed(&[b'x'; 4096]).unwrap();
        assert!(lines.0.len() <= MAX_LINE_BYTES);
    }
    lines.feed(b"\"}\n\n{\"error\"").unwrap();
    assert_eq!(lines.feed(b": \"no\"}\n").unwrap_err().to_string(), "no");
}
