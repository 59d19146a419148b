//! `GET /v1/models`: the public names, and nothing but them.

use serde_json::Value;

use crate::support::*;

fn ids(list: &Value) -> Vec<&str> {
    let models = list["data"].as_array().unwrap_or_else(|| panic!("no list of models: {list}"));
    models.iter().map(|model| model["id"].as_str().expect("an id")).collect()
}

#[tokio::test]
async fn the_list_holds_each_public_name_once() {
    let setups = [Setup::named("a"), Setup::named("b").vllm(), Setup::named("c").native("org/found-out").unmapped()];
    let (proxy, [_a, _b, _c]) = proxied("", setups).await;
    let list = proxy.client.get("/v1/models").await.ok().json();
    let mut names = ids(&list);
    names.sort_unstable();
    assert_eq!((list["object"].as_str(), names), (Some("list"), vec!["org/found-out", MODEL]));
    assert!(list["data"].as_array().expect("a list").iter().all(|model| model["object"] == "model"), "{list}");
}

#[tokio::test]
async fn names_that_a_table_gives_take_the_place_of_those_behind_it() {
    let backend = Setup::named("a").native("Qwen/one").unmapped().start().await;
    let proxy = Proxy::start(&config("[models]\n\"qwen-vl\" = [\"Qwen/one\"]\n", [&backend])).await;
    let list = proxy.client.get("/v1/models").await.ok().json();
    assert_eq!(ids(&list), [MODEL]);
}

#[tokio::test]
async fn what_the_backend_says_of_a_model_stands_in_the_list() {
    let (proxy, [_a]) = proxied("", [Setup::named("a").vllm()]).await;
    let list = proxy.client.get("/v1/models").await.ok().json();
    assert_eq!(list["data"][0]["max_model_len"], 4096, "{list}");
    assert!(!list.to_string().contains(NATIVE), "a native name shows: {list}");
}

#[tokio::test]
async fn one_model_can_be_asked_for_by_its_public_name() {
    let setups = [Setup::named("a"), Setup::named("b").native("org/found-out").unmapped()];
    let (proxy, [_a, _b]) = proxied("", setups).await;
    for (path, id) in [("qwen-vl", MODEL), ("org/found-out", "org/found-out"), ("org%2Ffound-out", "org/found-out")] {
        let model = proxy.client.get(&format!("/v1/models/{path}")).await.ok().json();
        assert_eq!((model["id"].as_str(), model["object"].as_str()), (Some(id), Some("model")));
    }
    proxy.client.get("/v1/models/nobody-serves-this").await.refused(404, "model_not_found");
}
