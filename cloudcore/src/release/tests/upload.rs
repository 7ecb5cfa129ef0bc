//! An upload that breaks off goes on where it was.

use super::*;

#[tokio::test]
async fn an_upload_goes_on_where_it_broke_off_and_names_last() {
    let desk = Desk::new();
    let repository = desk.published();
    let publication = repository.publication().unwrap();
    let mut hub = Hub { blobs: RefCell::default(), breaks_after: 1, published: RefCell::default() };
    assert!(upload(&hub, &publication, |_| ()).await.is_err());
    assert!(hub.published.borrow().is_none());
    hub.breaks_after = 100;
    let uploaded = upload(&hub, &publication, |_| ()).await.unwrap();
    assert_eq!((uploaded.sent, uploaded.present), (2, 1));
    assert_eq!(hub.published.borrow().as_ref(), Some(&publication.reply));
    // Content that neither side has whole is named.
    hub.blobs.borrow_mut().clear();
    fs::write(repository.blob_path(&Digest::of(b"a")), "b").unwrap();
    let error = format!("{:#}", upload(&hub, &publication, |_| ()).await.unwrap_err());
    assert!(error.contains("damaged") && error.contains("release build") && error.contains("differ"), "{error}");
    fs::remove_file(repository.blob_path(&Digest::of(b"a"))).unwrap();
    let error = upload(&hub, &publication, |_| ()).await.unwrap_err().to_string();
    assert!(error.contains("release build"), "{error}");
}
