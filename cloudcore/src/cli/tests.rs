//! What is written about the command line is what it takes.

use std::collections::BTreeMap;

use clap::error::ErrorKind;

use super::*;

/// The words of a simple shell command: quotes join, `#` after a blank ends, `>` and what follows is no argument.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (vec![], None::<String>, None);
    for c in line.chars() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('#' | '>', None) if word.is_none() => break,
            (' ', None) => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Every `crossdock` command of a text, without the assignments before it.
fn commands(text: &str) -> Vec<Vec<String>> {
    let lines = text.lines().map(|line| line.trim().trim_start_matches("- "));
    let of_words = |line: &str| {
        let mut words = words(line);
        let assignments =
            words.iter().take_while(|w| w.split_once('=').is_some_and(|(name, _)| !name.contains('-'))).count();
        words.drain(..assignments);
        (words.first().map(String::as_str) == Some("crossdock")).then_some(words)
    };
    lines.filter_map(of_words).collect()
}

fn parse(command: &[String], variables: &BTreeMap<&str, &str>) -> Result<Cli, clap::Error> {
    let filled = command.iter().map(|word| {
        variables.iter().fold(word.clone(), |word, (name, value)| word.replace(&format!("${name}"), value))
    });
    let filled: Vec<String> = filled.collect();
    assert!(!filled.iter().any(|word| word.contains('$')), "a variable that the test does not know: {filled:?}");
    Cli::try_parse_from(filled)
}

#[test]
fn the_example_pipeline_is_what_the_command_line_takes() {
    let text = include_str!("../../examples/pipeline.yml");
    let document: serde_json::Value = serde_saphyr::from_str(text).unwrap();
    let stages = document["stages"].as_array().unwrap();
    for (name, job) in document.as_object().unwrap() {
        if let Some(stage) = job.get("stage").filter(|_| !name.starts_with('.')) {
            assert!(stages.contains(stage), "{name} is of no stage");
        }
    }
    let variables = BTreeMap::from([
        ("RELEASE", "scan-uploader@1.4.0"),
        ("ROLLOUT", "scan-uploader.4711"),
        ("TARGETS_KEY", "/keys/targets"),
        ("PIPELINE_KEY", "/keys/pipeline"),
        ("SANDBOX_URL", "https://sandbox:8443"),
        ("PRODUCTION_URL", "https://production:8443"),
        ("SANDBOX_CA", "/ca/sandbox.pem"),
        ("PRODUCTION_CA", "/ca/production.pem"),
    ]);
    let commands = commands(text);
    assert!(commands.len() >= 15, "{commands:?}");
    for command in &commands {
        parse(command, &variables).unwrap_or_else(|e| panic!("{}\n{e}", command.join(" ")));
    }
    // The whole way is in it.
    let joined: Vec<String> = commands.iter().map(|words| words.join(" ")).collect();
    for part in [
        "release build",
        "release sign",
        "release publish",
        "rollout plan",
        "--wait",
        "release promote",
        "rollout approve",
    ] {
        assert!(joined.iter().any(|line| line.contains(part)), "{part}");
    }
}

#[test]
fn the_commands_of_drills_are_what_the_command_line_takes() {
    use crate::release::drill::hub::{HubCase, steps};
    for case in HubCase::ALL {
        let lines: Vec<String> = steps(case, "repo").into_iter().flat_map(|step| step.commands).collect();
        let text = [
            ("NODE", "box-7"),
            ("SITE", "hz-01"),
            ("NAME", "name"),
            ("APP", "app"),
            ("VERSION", "1"),
            ("ROLE", "viewer"),
        ]
        .iter()
        .fold(lines.join("\n"), |text, (word, value)| text.replace(word, value));
        for command in commands(&text) {
            parse(&command, &BTreeMap::new()).unwrap_or_else(|e| panic!("{case}: {}\n{e}", command.join(" ")));
        }
    }
}

#[test]
fn the_commands_of_the_readme_are_what_the_command_line_takes() {
    let text = include_str!("../../../README.md");
    // A node, and the ends of examples that stand side by side.
    let commands: Vec<Vec<String>> = commands(text)
        .into_iter()
        .flat_map(|words| {
            let parts = words.join(" ");
            parts.split("; ").map(|part| part.split(' ').map(str::to_owned).collect()).collect::<Vec<Vec<String>>>()
        })
        .collect();
    assert!(commands.len() >= 15, "{commands:?}");
    for command in commands {
        if let Err(error) = parse(&command, &BTreeMap::new()) {
            assert_eq!(error.kind(), ErrorKind::DisplayHelp, "{}\n{error}", command.join(" "));
        }
    }
}
