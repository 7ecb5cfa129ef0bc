//! `crossdock apply` and `crossdock delete`.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use proto::{
    object::{AssignedApp, Metadata, NodeSpec, RolloutSpec, Site, SiteSpec},
    selector::Selector,
};
use serde_json::Value;

use super::{
    Context,
    client::Client,
    exit::{CliError, Exit},
    kinds::{KindInfo, text},
};
use crate::{
    bounded,
    plain::Plain,
    unknown::{self, fields_of},
};

/// Largest file accepted, in bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// `crossdock apply`.
#[derive(Debug, clap::Args)]
pub struct ApplyArgs {
    /// File, folder (its *.yaml, *.yml and *.json), or - for standard input. Repeatable.
    #[arg(short, long = "filename", required = true)]
    files: Vec<PathBuf>,
}

/// `crossdock delete`.
#[derive(Debug, clap::Args)]
pub struct DeleteArgs {
    /// Kind of the objects.
    kind: String,
    /// Their names.
    names: Vec<String>,
    /// Delete all that this selector names, instead of names.
    #[arg(short = 'l', long, conflicts_with = "names")]
    selector: Option<Selector>,
}

/// Creates objects, or merges into those that exist (RFC 7396: absent stays, `null` removes). Fields that the hub did not
/// keep are told. All files are read and checked before the first is sent.
///
/// # Errors
/// Names the file and the document that is wrong.
pub async fn apply(args: ApplyArgs, context: &Context) -> anyhow::Result<()> {
    let mut objects = vec![];
    for path in &args.files {
        for (origin, text) in read_all(path)? {
            objects.extend(parse(&text).with_context(|| format!("read {origin}"))?);
        }
    }
    if objects.is_empty() {
        return Err(CliError::new(Exit::Usage, "there is no object in what was given").into());
    }
    let client = context.client()?;
    for (kind, object) in objects {
        apply_one(&client, kind, object).await?;
    }
    Ok(())
}

async fn apply_one(client: &Client, kind: &KindInfo, mut object: Value) -> anyhow::Result<()> {
    let name = text(&object, "/metadata/name");
    if let Some(map) = object.as_object_mut() {
        map.remove("status"); // the hub's to write
    }
    let conditional = object.pointer("/metadata/resourceVersion").is_some();
    let mut tries = 5; // a node's status changes all the time, and each change is a new resourceVersion
    let (verb, kept) = loop {
        tries -= 1;
        let old = match client.get_value(kind.plural, &name).await {
            Ok(old) => old,
            Err(e) if exit_of(&e) == Some(Exit::NotFound) => {
                break ("created", client.post::<Value>(kind.plural, &object).await?);
            }
            Err(e) => return Err(e),
        };
        // What the file does not state stays: labels on a node must not take its apps away.
        let mut merged = old.clone();
        merge(&mut merged, object.clone());
        if let Some(map) = merged.as_object_mut() {
            map.remove("status");
        }
        match client.put(kind.plural, &name, &merged).await {
            Ok(new) if text(&new, "/metadata/resourceVersion") == text(&old, "/metadata/resourceVersion") => {
                break ("unchanged", new);
            }
            Ok(new) => break ("configured", new),
            Err(e) if exit_of(&e) == Some(Exit::Refused) && !conditional && tries > 0 => {}
            Err(e) => return Err(e),
        }
    };
    for field in unknown::dropped(&object, &kept) {
        eprintln!("warning: {}/{name}: {}", kind.plural, unknown::warning(&field, &known_fields()));
    }
    println!("{}/{name} {verb}", kind.plural);
    Ok(())
}

/// Names of the fields of what can be applied.
fn known_fields() -> [&'static [&'static str]; 6] {
    [
        fields_of::<Site>(),
        fields_of::<Metadata>(),
        fields_of::<NodeSpec>(),
        fields_of::<AssignedApp>(),
        fields_of::<SiteSpec>(),
        fields_of::<RolloutSpec>(),
    ]
}

fn exit_of(error: &anyhow::Error) -> Option<Exit> {
    error.downcast_ref::<CliError>().map(|e| e.exit)
}

/// JSON Merge Patch (RFC 7396): maps are merged, `null` removes, everything else replaces.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Some(target) = target.as_object_mut() else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(&key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

/// Deletes by name or selector.
///
/// # Errors
/// The first that could not be deleted.
pub async fn delete(args: DeleteArgs, context: &Context) -> anyhow::Result<()> {
    let kind = KindInfo::find(&args.kind)?;
    if kind.kind == "Release" {
        let message = "a release is signed metadata and cannot be deleted; \
                       withdraw it: crossdock release remove APP@VERSION, then sign and publish";
        return Err(CliError::new(Exit::Usage, message).into());
    }
    let client = context.client()?;
    let names = match &args.selector {
        Some(selector) => {
            let items = client.list(kind.plural, Some(selector)).await?.items;
            if items.is_empty() {
                eprintln!("No {} found.", kind.plural);
            }
            items.iter().map(|o| text(o, "/metadata/name")).collect()
        }
        None if args.names.is_empty() => {
            return Err(CliError::new(Exit::Usage, "name the objects, or select them with -l").into());
        }
        None => args.names,
    };
    for name in names {
        let name = name.replacen('@', ".", 1);
        client.delete(kind.plural, &name).await?;
        println!("{}/{name} deleted", kind.plural);
    }
    Ok(())
}

fn read_all(path: &Path) -> anyhow::Result<Vec<(String, String)>> {
    if path == Path::new("-") {
        let text = bounded::read(std::io::stdin(), MAX_FILE_BYTES).context("read standard input")?;
        return Ok(vec![("standard input".into(), text)]);
    }
    let origin = path.display().to_string();
    let meta = std::fs::metadata(path).with_context(|| format!("read {origin}"))?;
    if !meta.is_dir() {
        let text = bounded::read_file(path, MAX_FILE_BYTES).with_context(|| format!("read {origin}"))?;
        return Ok(vec![(origin, text)]);
    }
    let mut files: Vec<PathBuf> = std::fs::read_dir(path)?.flatten().map(|e| e.path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json"));
    files.sort();
    let texts = files.iter().map(|f| read_all(f)).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(texts.into_iter().flatten().collect())
}

/// The objects of a text with one or several YAML (or JSON) documents.
pub(crate) fn parse(text: &str) -> anyhow::Result<Vec<(&'static KindInfo, Value)>> {
    serde_saphyr::from_multiple::<Plain>(text)?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
    let mut objects = vec![];
    for (i, mut document) in documents.into_iter().enumerate() {
        let items = match document.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => items,
            _ if document.is_null() => continue,
            _ => vec![document],
        };
        for object in items {
            let place = format!("document {}", i + 1);
            let kind = text_of(&object, "/kind").with_context(|| format!("{place} has no kind"))?;
            text_of(&object, "/metadata/name").with_context(|| format!("{place} has no metadata.name"))?;
            objects.push((KindInfo::find(&kind).context(place)?, object));
        }
    }
    Ok(objects)
}

fn text_of(object: &Value, pointer: &str) -> Option<String> {
    Some(text(object, pointer)).filter(|t| !t.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_documents_and_lists_are_read() {
        let text = "kind: Site\nmetadata: {name: a}\nspec: {}\n---\nkind: SiteList\nitems:\n- kind: Site\n  metadata: {name: b}\n";
        let names: Vec<_> = parse(text).unwrap().iter().map(|(_, o)| super::text(o, "/metadata/name")).collect();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn what_a_file_does_not_state_stays() {
        let mut node = serde_json::json!({"spec": {"site": "a", "apps": {"x": 1, "y": 2}}});
        merge(
            &mut node,
            serde_json::json!({"metadata": {"labels": {"line": "3"}}, "spec": {"site": "b", "apps": {"y": null}}}),
        );
        let expected =
            serde_json::json!({"metadata": {"labels": {"line": "3"}}, "spec": {"site": "b", "apps": {"x": 1}}});
        assert_eq!(node, expected);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, word) in [
            ("a: [", ""),
            ("metadata: {name: x}", "no kind"),
            ("kind: Site", "metadata.name"),
            ("kind: Pod\nmetadata: {name: x}", "Pod"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(word), "{error}");
        }
    }
}
