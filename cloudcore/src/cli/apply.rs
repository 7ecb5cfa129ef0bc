//! `crossdock apply` and `crossdock delete`: objects from files, and away with them.
//!
//! Every document of every file is read before the first is sent, so that a broken file changes nothing.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use reqwest::Method;
use serde_json::Value;

use super::{
    Context,
    client::{Client, ClientError, collection_path, object_path},
    exit::{Exit, Failure},
    kinds::{self, KindInfo},
    output,
};

/// Largest file, in bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// `crossdock apply`.
#[derive(Debug, clap::Args)]
pub struct ApplyArgs {
    /// YAML or JSON file, folder of them, or - for standard input; may be given several times
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    filename: Vec<PathBuf>,
}

/// `crossdock delete`.
#[derive(Debug, clap::Args)]
pub struct DeleteArgs {
    /// Kind, or KIND/NAME
    kind: String,
    /// Names
    names: Vec<String>,
    /// Be content when there is none
    #[arg(long)]
    ignore_not_found: bool,
}

/// An object to be, as a file has it.
#[derive(Debug)]
struct Document {
    kind: KindInfo,
    name: String,
    value: Value,
}

/// Creates or changes objects.
///
/// # Errors
/// When a file is malformed (nothing is sent then), or the hub refuses.
pub async fn apply(args: ApplyArgs, context: &Context) -> anyhow::Result<()> {
    let mut documents = vec![];
    for path in &args.filename {
        documents.extend(read(path)?);
    }
    if documents.is_empty() {
        return Err(Failure::new(Exit::Usage, "the files hold no objects"));
    }
    let client = context.client()?;
    for document in documents {
        let did = apply_one(&client, &document)
            .await
            .with_context(|| format!("{}/{}", document.kind.kind.to_ascii_lowercase(), document.name))?;
        output::print(&format!("{}/{} {did}\n", document.kind.kind.to_ascii_lowercase(), document.name))?;
    }
    Ok(())
}

async fn apply_one(client: &Client, document: &Document) -> Result<&'static str, ClientError> {
    let path = object_path(document.kind.plural, &document.name);
    let current: Value = match client.call(Method::GET, &path, &[], None).await {
        Ok(current) => current,
        Err(error) if error.is_not_found() => {
            let path = collection_path(document.kind.plural);
            client.call::<Value>(Method::POST, &path, &[], Some(&document.value)).await?;
            return Ok("created");
        }
        Err(error) => return Err(error),
    };
    let mut next = document.value.clone();
    // What a file does not say about labels and annotations stays as it is.
    for key in ["labels", "annotations"] {
        let kept = current.pointer(&format!("/metadata/{key}"));
        if let (Some(kept), Some(metadata)) = (kept, next.get_mut("metadata").and_then(Value::as_object_mut)) {
            metadata.entry(key).or_insert_with(|| kept.clone());
        }
    }
    let version = |v: &Value| v.pointer("/metadata/resourceVersion").cloned();
    let after: Value = client.call(Method::PUT, &path, &[], Some(&next)).await?;
    Ok(if version(&after) == version(&current) { "unchanged" } else { "configured" })
}

fn read(path: &Path) -> anyhow::Result<Vec<Document>> {
    let during = || format!("could not read {}", path.display());
    if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().take(MAX_FILE_BYTES + 1).read_to_string(&mut text).context("could not read standard input")?;
        return parse(&text, "standard input");
    }
    if !fs::metadata(path).with_context(during)?.is_dir() {
        return read_file(path);
    }
    let entries = fs::read_dir(path).with_context(during)?.collect::<Result<Vec<_>, _>>().with_context(during)?;
    let mut files: Vec<_> = entries.into_iter().map(|e| e.path()).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json"));
    files.sort();
    files
        .iter()
        .map(|file| read_file(file))
        .collect::<Result<Vec<_>, _>>()
        .map(|all| all.into_iter().flatten().collect())
}

fn read_file(path: &Path) -> anyhow::Result<Vec<Document>> {
    let during = || format!("could not read {}", path.display());
    let mut text = String::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text))
        .with_context(during)?;
    parse(&text, &path.display().to_string())
}

/// Reads the documents of a text; `source` names it in errors.
fn parse(text: &str, source: &str) -> anyhow::Result<Vec<Document>> {
    let usage = |problem: String| Failure::new(Exit::Usage, format!("{source}: {problem}"));
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(usage(format!("it is larger than {MAX_FILE_BYTES} bytes; split it")));
    }
    let values: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|e| usage(e.to_string()))?;
    let mut documents = vec![];
    for (number, value) in values.into_iter().enumerate() {
        let wrong = |problem: String| usage(format!("document {}: {problem}", number + 1));
        // Lists, as `crossdock get -o yaml` writes them, are taken apart.
        let items = match value {
            Value::Object(mut map) if map.get("items").is_some_and(Value::is_array) => {
                map.get_mut("items").and_then(Value::as_array_mut).map(std::mem::take).unwrap_or_default()
            }
            value => vec![value],
        };
        for value in items {
            documents.push(document(value).map_err(wrong)?);
        }
    }
    Ok(documents)
}

fn document(mut value: Value) -> Result<Document, String> {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let kind = text("/kind").ok_or("it has no kind; write kind: Node, Site or Rollout")?;
    let kind = kinds::find(&kind)?;
    let version = text("/apiVersion").ok_or_else(|| format!("it has no apiVersion; write {}", proto::API_VERSION))?;
    if version != proto::API_VERSION {
        return Err(format!("apiVersion is {version:?}; this program knows {}", proto::API_VERSION));
    }
    let name = text("/metadata/name").ok_or("it has no metadata.name")?;
    if value.get("spec").is_none() {
        return Err("it has no spec".into());
    }
    if let Some(map) = value.as_object_mut() {
        map.remove("status"); // the hub's to write
    }
    Ok(Document { kind, name, value })
}

/// Deletes objects.
///
/// # Errors
/// When there is none (unless that is fine), or the hub refuses.
pub async fn delete(args: DeleteArgs, context: &Context) -> anyhow::Result<()> {
    let (kind, names) = kinds::kind_and_names(&args.kind, &args.names)?;
    if names.is_empty() {
        return Err(Failure::new(Exit::Usage, format!("name what to delete: crossdock delete {} NAME", args.kind)));
    }
    let client = context.client()?;
    for name in names {
        let path = object_path(kind.plural, &name);
        match client.call::<Value>(Method::DELETE, &path, &[], None).await {
            Ok(_) => output::print(&format!("{}/{name} deleted\n", kind.kind.to_ascii_lowercase()))?,
            Err(error) if args.ignore_not_found && error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SITE: &str = "apiVersion: crossdock.io/v1\nkind: Site\nmetadata: {name: hz-01}\nspec: {later: 1}\n";

    #[test]
    fn files_folders_and_lists_are_read_whole() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("b.yaml"), format!("{SITE}---\n{SITE}---\n")).unwrap();
        fs::write(
            folder.path().join("a.json"),
            r#"{"items": [{"apiVersion": "crossdock.io/v1", "kind": "node",
            "metadata": {"name": "n"}, "spec": {}, "status": {"phase": "Ready"}}]}"#,
        )
        .unwrap();
        fs::write(folder.path().join("notes.txt"), "not read").unwrap();
        let documents = read(folder.path()).unwrap();
        let names: Vec<_> = documents.iter().map(|d| (d.kind.kind, d.name.as_str())).collect();
        assert_eq!(names, [("Node", "n"), ("Site", "hz-01"), ("Site", "hz-01")]);
        assert!(documents[0].value.get("status").is_none());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (text, word) in [
            ("kind: [", "f.yaml"),
            ("a: 1\na: 2", "f.yaml"),
            (&SITE.replace("Site", "Pod"), "there is no kind"),
            (&SITE.replace("/v1", "/v2"), "this program knows"),
            (&SITE.replace("spec", "spac"), "no spec"),
            (&format!("{SITE}---\nkind: Site\napiVersion: crossdock.io/v1"), "document 2"),
            ("- 1", "no kind"),
            (&" ".repeat(5 << 20), "split it"),
        ] {
            let error = parse(text, "f.yaml").unwrap_err();
            assert_eq!(super::super::exit::code(&error), Exit::Usage);
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
