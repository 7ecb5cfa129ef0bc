//! Who built a release and from what (an in-toto Statement v1 with SLSA provenance v1), and what is in it (a bill of
//! materials in SPDX or CycloneDX): read, compared with the release's files, told to people.
//!
//! Both are documents of others, kept to the byte beside the release and named by digest in its manifest, so whoever
//! signs the release signs for them too. A statement in a DSSE envelope is read; who signed the envelope is for its
//! builder's tools to verify (`cosign`, `slsa-verifier`), which find it in the repository under its digest.

use std::collections::BTreeSet;

use data_encoding::BASE64;
use proto::{
    digest::Digest,
    release::{Attachment, FileEntry, MAX_ATTACHMENT_BYTES, Manifest},
};
use serde_json::Value;

use super::{read_text, repository::Repository};
use crate::plain;

const STATEMENT: &str = "https://in-toto.io/Statement/v1";
const PREDICATE: &str = "https://slsa.dev/provenance/v1";
const PAYLOAD: &str = "application/vnd.in-toto+json";
/// Most subjects of one statement.
const MAX_SUBJECTS: usize = 100_000;
/// Most sources that are shown.
const SHOWN_SOURCES: usize = 3;
/// Longest word of a document that is shown, in characters.
const SHOWN_CHARS: usize = 120;

/// What a provenance statement says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// Who built it: a URI that the builder chose.
    pub builder: String,
    /// How it was built.
    pub build_type: String,
    /// From what: URIs, with a digest where one is given.
    pub sources: Vec<String>,
    /// What was built: names with their SHA-256.
    pub subjects: Vec<(String, Digest)>,
}

impl Statement {
    /// Reads one, bare or in a DSSE envelope.
    ///
    /// # Errors
    /// What is missing or of another kind, and how to mend it.
    pub fn parse(text: &str) -> Result<Statement, String> {
        let mut value: Value = plain::read(text.as_bytes()).map_err(|e| format!("it is no JSON: {e}"))?;
        if value.get("payloadType").and_then(Value::as_str) == Some(PAYLOAD) {
            let payload = text_at(&value, "/payload").ok_or("its envelope holds no payload")?;
            let payload = BASE64.decode(payload.as_bytes()).map_err(|e| format!("its payload is no base64: {e}"))?;
            value = plain::read(&payload).map_err(|e| format!("its payload is no JSON: {e}"))?;
        }
        expect(&value, "/_type", STATEMENT)?;
        expect(&value, "/predicateType", PREDICATE)?;
        let needed = |path: &str| {
            let text = text_at(&value, path).filter(|text| !text.is_empty());
            text.map(str::to_owned).ok_or_else(|| format!("it lacks {}, which SLSA provenance must have", dotted(path)))
        };
        let builder = needed("/predicate/runDetails/builder/id")?;
        let build_type = needed("/predicate/buildDefinition/buildType")?;
        let sources = list_at(&value, "/predicate/buildDefinition/resolvedDependencies");
        let sources = sources.iter().filter_map(source).collect();
        let subjects = list_at(&value, "/subject");
        if subjects.is_empty() || subjects.len() > MAX_SUBJECTS {
            return Err(format!("it has {} subjects, and 1 to {MAX_SUBJECTS} are needed", subjects.len()));
        }
        let subjects = subjects.iter().map(subject).collect::<Result<_, _>>()?;
        Ok(Statement { builder, build_type, sources, subjects })
    }

    /// Compares it with the files of a release; yields how many of them it speaks of.
    ///
    /// # Errors
    /// The first subject that is no file of the release, and how to mend it.
    pub fn check(&self, files: &[FileEntry]) -> Result<usize, String> {
        let digests: BTreeSet<Digest> = files.iter().map(|file| file.digest).collect();
        for (name, digest) in &self.subjects {
            if digests.contains(digest) {
                continue;
            }
            let last = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
            let same_name = files.iter().find(|file| last(file.path.as_str()) == last(name));
            return Err(match same_name {
                Some(file) => format!(
                    "it is about another {}: it says sha256 {}, the release's {} has {}; take files and provenance of the same build",
                    shown(name),
                    digest.hex(),
                    file.path.as_str(),
                    file.digest.hex()
                ),
                None => format!(
                    "its subject {} (sha256 {}) is no file of the release; release what was built, or leave the subject out",
                    shown(name),
                    digest.hex()
                ),
            });
        }
        let subjects: BTreeSet<Digest> = self.subjects.iter().map(|(_, digest)| *digest).collect();
        Ok(files.iter().filter(|file| subjects.contains(&file.digest)).count())
    }
}

/// What a bill of materials says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bill {
    /// Format and version, such as `SPDX-2.3` or `CycloneDX 1.6`.
    pub format: String,
    /// How many packages or components it lists.
    pub components: usize,
}

impl Bill {
    /// Reads one.
    ///
    /// # Errors
    /// When it is neither SPDX nor CycloneDX.
    pub fn parse(text: &str) -> Result<Bill, String> {
        let value: Value = plain::read(text.as_bytes()).map_err(|e| format!("it is no JSON: {e}"))?;
        if let Some(version) = text_at(&value, "/spdxVersion") {
            return Ok(Bill { format: shown(version), components: list_at(&value, "/packages").len() });
        }
        if text_at(&value, "/bomFormat") == Some("CycloneDX") {
            let version = text_at(&value, "/specVersion").unwrap_or("of no version");
            return Ok(Bill { format: shown(&format!("CycloneDX {version}")), components: nested(&value) });
        }
        let context = text_at(&value, "/@context").filter(|context| context.starts_with("https://spdx.org/rdf/3."));
        if let Some(context) = context {
            let graph = list_at(&value, "/@graph");
            let packages = graph.iter().filter(|element| text_at(element, "/type") == Some("software_Package"));
            let version = context.trim_start_matches("https://spdx.org/rdf/").split('/').next().unwrap_or_default();
            return Ok(Bill { format: shown(&format!("SPDX-{version}")), components: packages.count() });
        }
        Err("it is neither SPDX nor CycloneDX in JSON: spdxVersion, an SPDX @context or bomFormat is needed".into())
    }
}

/// What a release's provenance and bill say, a line each; what does not fit is said in its place.
#[must_use]
pub fn describe(repository: &Repository, manifest: &Manifest) -> Vec<String> {
    let read = |attachment: &Attachment| {
        let text = read_text(&repository.blob_path(&attachment.digest), MAX_ATTACHMENT_BYTES);
        text.map_err(|_| format!("sha256 {}, not in this copy of the repository", attachment.digest.hex()))
    };
    let mut lines = vec![];
    if let Some(attachment) = &manifest.provenance {
        match read(attachment) {
            Err(absent) => lines.push(format!("provenance: {absent}")),
            Ok(text) => lines.extend(of_statement(&text, manifest)),
        }
    }
    if let Some(attachment) = &manifest.sbom {
        lines.push(match read(attachment).map(|text| Bill::parse(&text)) {
            Err(absent) => format!("sbom: {absent}"),
            Ok(Err(problem)) => format!("SBOM IS NOT READABLE: {problem}"),
            Ok(Ok(Bill { format, components })) => format!("sbom: {format}, {components} components"),
        });
    }
    lines
}

fn of_statement(text: &str, manifest: &Manifest) -> Vec<String> {
    let statement = match Statement::parse(text) {
        Ok(statement) => statement,
        Err(problem) => return vec![format!("PROVENANCE IS NOT READABLE: {problem}")],
    };
    let mut lines = vec![format!("built by {} ({})", shown(&statement.builder), shown(&statement.build_type))];
    lines.extend(statement.sources.iter().take(SHOWN_SOURCES).map(|source| format!("from {}", shown(source))));
    if let Some(more) = statement.sources.len().checked_sub(SHOWN_SOURCES).filter(|more| *more > 0) {
        lines.push(format!("from {more} other sources"));
    }
    lines.push(match statement.check(&manifest.files) {
        Ok(n) => format!("the provenance is about {n} of {} files", manifest.files.len()),
        Err(problem) => format!("PROVENANCE DOES NOT FIT: {problem}"),
    });
    lines
}

fn subject(value: &Value) -> Result<(String, Digest), String> {
    let name = text_at(value, "/name").unwrap_or("without a name").to_owned();
    let hex = text_at(value, "/digest/sha256");
    let digest = hex.and_then(|hex| Digest::from_hex(&hex.to_ascii_lowercase()).ok());
    let digest = digest.ok_or_else(|| format!("its subject {} has no sha256 digest", shown(&name)))?;
    Ok((name, digest))
}

/// A source with the first digest that is given for it.
fn source(value: &Value) -> Option<String> {
    let uri = text_at(value, "/uri").or_else(|| text_at(value, "/name"))?;
    let digest = value.pointer("/digest").and_then(Value::as_object).and_then(|digests| digests.iter().next());
    Some(match digest.and_then(|(kind, hex)| Some((kind, hex.as_str()?))) {
        Some((kind, hex)) => format!("{uri} {kind} {hex}"),
        None => uri.to_owned(),
    })
}

/// Components, and those inside of them.
fn nested(value: &Value) -> usize {
    let (mut count, mut open) = (0, vec![value]);
    while let Some(value) = open.pop() {
        let inside = value.get("components").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        count += inside.len();
        open.extend(inside);
    }
    count
}

fn expect(value: &Value, path: &str, expected: &str) -> Result<(), String> {
    match text_at(value, path) {
        Some(found) if found == expected => Ok(()),
        Some(found) => Err(format!("its {} is {}, and {expected} is read here", dotted(path), shown(found))),
        None => Err(format!("it has no {}; an in-toto Statement with SLSA provenance is needed", dotted(path))),
    }
}

fn text_at<'a>(value: &'a Value, path: &str) -> Option<&'a str> {
    value.pointer(path).and_then(Value::as_str)
}

fn list_at<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    value.pointer(path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn dotted(path: &str) -> String {
    path.trim_start_matches('/').replace('/', ".")
}

/// A word of somebody else's document, on a terminal.
fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS).flat_map(char::escape_debug).collect()
}
