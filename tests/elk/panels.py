"""The searches and panels of deploy/kibana/objects.ndjson, asked of Elasticsearch without a Kibana: each finds something.

    panels.py ELASTICSEARCH
"""

import json
import pathlib
import re
import sys
import urllib.request

OBJECTS = pathlib.Path(__file__).parent.parent.parent / "deploy/kibana/objects.ndjson"


def ask(url, streams, query, aggregations):
    # What is used of Kibana's language is Lucene's, but for these.
    query = re.sub(r" >= (\S+)", r":>=\1", query).replace(" and ", " AND ").replace(": ", ":") or "*"
    body = {"size": 0, "track_total_hits": True, "query": {"query_string": {"query": query}}, "aggs": aggregations}
    request = urllib.request.Request(f"{url}/{streams}/_search", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def aggregation(each):
    parameters = each["params"]
    match each["type"]:
        case "terms":
            return {"terms": {"field": parameters["field"], "size": parameters["size"]}}
        case "date_histogram":
            return {"date_histogram": {"field": parameters["field"], "fixed_interval": "1m"}}
        case "percentiles":
            return {"percentiles": {"field": parameters["field"], "percents": parameters["percents"]}}
        case kind:
            return {kind: {"field": parameters["field"]}}


def main():
    url = sys.argv[1]
    objects = {each["id"]: each for each in map(json.loads, OBJECTS.read_text().splitlines())}
    asked = 0
    for each in objects.values():
        shown = each["attributes"]
        if each["type"] not in ("search", "visualization"):
            continue
        view = objects[each["references"][0]["id"]]["attributes"]["title"]
        query = json.loads(shown["kibanaSavedObjectMeta"]["searchSourceJSON"])["query"]["query"]
        states = [state for state in json.loads(shown.get("visState", "{}")).get("aggs", []) if state["type"] != "count"]
        answer = ask(url, view, query, {state["id"]: aggregation(state) for state in states})
        assert answer["hits"]["total"]["value"] > 0, f"{each['id']} finds nothing"
        for state in states:
            found = answer["aggregations"][state["id"]]
            assert found.get("buckets") or found.get("value") or found.get("values"), f"{each['id']}: {state} is empty: {found}"
        asked += 1
    print(f"searches and panels of Kibana: {asked} find what they should")


main()
