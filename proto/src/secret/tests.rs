//! Sealed and opened, and every way in which that must fail.

use super::*;

fn key(n: u8) -> SealingKey {
    SealingKey::from_bytes(&[n; 32]).unwrap()
}

fn to(node: Option<&str>, n: u8) -> SealedTo {
    SealedTo { node: node.map(str::to_owned), key: key(n).public().to_string() }
}

fn app() -> Name {
    "scan".parse().unwrap()
}

#[test]
fn keys_have_the_form_that_age_gives_them() {
    let key = key(7);
    let text = key.text();
    assert!(text.starts_with("AGE-SECRET-KEY-1"), "no other program would read it");
    assert_eq!(text.parse::<SealingKey>().unwrap().public(), key.public());
    let file = format!("# created: today\n# public key: {}\n{}\n", key.public(), *text);
    assert_eq!(file.parse::<SealingKey>().unwrap().public(), key.public());
    assert!(!format!("{key:?}").contains("SECRET"));
    let public = key.public().to_string();
    assert_eq!((public.len(), public.parse::<Recipient>().unwrap()), (62, key.public()));
    for bad in ["", "age1", "age1qqq", &public[..61], &public.replacen("age1", "age2", 1), &text] {
        assert!(bad.parse::<Recipient>().is_err(), "{bad}");
    }
    let two = format!("{}\n{}", *text, *text);
    for bad in ["", "# nothing", &public, &text[..30], &two] {
        assert!(matches!(bad.parse::<SealingKey>(), Err(SecretError::Key(_))), "{bad}");
    }
}

#[test]
fn who_it_is_sealed_to_opens_it_and_nobody_else() {
    let all = [to(Some("box-1"), 1), to(Some("box-2"), 2), to(None, 9)];
    let sealed = seal(b"hunter2", &app(), "db", &all).unwrap();
    assert!(!sealed.windows(7).any(|w| w == b"hunter2"));
    for n in [1, 2, 9] {
        assert_eq!(&**open(&sealed, "scan", "db", &key(n)).unwrap(), b"hunter2");
    }
    let says = Sealed { of: Some(("scan".into(), "db".into())), to: all.to_vec(), recipients: 3 };
    assert_eq!(inspect(&sealed).unwrap(), says);
    let refused = open(&sealed, "scan", "db", &key(3)).unwrap_err();
    let expected = SecretError::NotForThisKey { key: key(3).public().to_string(), sealed: Box::new(says) };
    assert_eq!(refused, expected);
}

#[test]
fn a_secret_of_one_app_is_none_of_another() {
    let sealed = seal(b"x", &app(), "db", &[to(Some("box-1"), 1)]).unwrap();
    for (app, name) in [("other", "db"), ("scan", "other")] {
        let refused = open(&sealed, app, name, &key(1)).unwrap_err();
        assert_eq!(refused, SecretError::OfAnother { app: "scan".into(), name: "db".into() });
    }
}

#[test]
fn bounds_hold() {
    let one = [to(Some("box-1"), 1)];
    let largest = vec![0; MAX_SECRET_BYTES];
    let sealed = seal(&largest, &app(), "db", &one).unwrap();
    assert_eq!(open(&sealed, "scan", "db", &key(1)).unwrap().len(), MAX_SECRET_BYTES);
    assert_eq!(seal(&[largest, vec![0]].concat(), &app(), "db", &one), Err(SecretError::TooLarge));
    assert_eq!(seal(b"", &app(), "db", &[]), Err(SecretError::Recipients(0)));
    let many = vec![to(Some(&"n".repeat(63)), 1); MAX_RECIPIENTS + 1];
    assert_eq!(seal(b"", &app(), "db", &many), Err(SecretError::Recipients(MAX_RECIPIENTS + 1)));
    let name = "n".repeat(MAX_SECRET_NAME_BYTES);
    let full = seal(&vec![0; MAX_SECRET_BYTES], &app(), &name, &many[1..]).unwrap();
    assert!((full.len() as u64) < MAX_SEALED_BYTES, "{}", full.len());
    assert!(matches!(inspect(&vec![0; 3 << 20]), Err(SecretError::TooLarge)));
    for bad in ["", ".", "..", ".x", "a/b", "a b", "a\0", "ü", &"n".repeat(129)] {
        assert!(!is_secret_name(bad), "{bad:?}");
        assert!(matches!(seal(b"", &app(), bad, &one), Err(SecretError::Name(_))));
    }
}

#[test]
fn damage_is_noticed_wherever_it_is() {
    let sealed = seal(b"hunter2", &app(), "db", &[to(Some("box-1"), 1)]).unwrap();
    for i in 0..sealed.len() {
        let mut damaged = sealed.clone();
        damaged[i] ^= 1;
        assert!(open(&damaged, "scan", "db", &key(1)).is_err(), "byte {i}");
        assert!(open(&sealed[..i], "scan", "db", &key(1)).is_err(), "cut at {i}");
    }
    for none in
        [&b""[..], b"PASSWORD=x", b"-----BEGIN AGE ENCRYPTED FILE-----\nYWdl\n-----END AGE ENCRYPTED FILE-----\n"]
    {
        assert!(matches!(inspect(none), Err(SecretError::NotAge(_))), "{none:?}");
        assert!(matches!(open(none, "scan", "db", &key(1)), Err(SecretError::NotAge(_))));
    }
}
