//! `/openapi.json`: the document that the daemon serves, and the routes that it really has.

use m40_testkit::http;

use crate::builder;

#[test]
fn every_operation_of_the_document_is_a_route_of_the_daemon() {
    let daemon = builder().start();
    let document = daemon.get("/openapi.json");
    assert_eq!(document.header("content-type"), Some("application/json"));
    let document = document.json();
    assert_eq!(document["openapi"], "3.1.0");
    let mut count = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            let path = path.replace('{', "some-").replace('}', "");
            let method = method.to_uppercase();
            let json = [("content-type", "application/json")];
            let reply = http::request_with(daemon.http(), &method, &path, &json, b"not JSON");
            assert_ne!(reply.status, 405, "{method} {path}");
            assert!(!reply.body.contains("there is no route"), "{method} {path}: {}", reply.body);
            count += 1;
        }
    }
    assert!(count > 10, "{count}");
}
