# A line for each task in, a line for each result out, as they come; the last one is the summary.
seq 0 9 | curl -fsNT - -X POST -H "Authorization: Bearer $MILLPOND_TOKEN" \
    "$MILLPOND_PRODUCER_URL/v1/jobs/default/square?job=$1&wait=true" | tee /dev/stderr | tail -n 1 |
    grep -q '"total":10,"done":10,' && echo "all have ended"
