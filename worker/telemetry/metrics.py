"""Every metric of the worker. Base units; labels are closed sets, never a URL or an id."""

from prometheus_client import Counter, Gauge, Histogram, Info

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_SCORES = tuple(round(-0.2 + 0.1 * step, 1) for step in range(13))

BUILD = Info("copysieve_build", "Version of the worker and name of its model")

READY = Gauge("copysieve_ready", "1 while the model is warm and there is a hot set to search")

# -- stream --
RECORDS = Counter("copysieve_records_total", "Records taken from the input topic")
RECORD_BYTES = Counter("copysieve_record_bytes_total", "Bytes of keys and values taken")
SKIPPED = Counter(
    "copysieve_records_skipped_total", "Records that an earlier owner had finished already"
)
LAG = Gauge("copysieve_lag_records", "End of the log less watermark", ["partition"])
TOPIC_MISSING = Gauge("copysieve_uploads_topic_missing", "1 while there is no uploads topic")
FETCHED_ANEW = Counter(
    "copysieve_partitions_fetched_anew_total",
    "Times that nothing came of a partition although there was more",
    ["partition"],
)
WATERMARK = Gauge("copysieve_watermark_offset", "All below is finished", ["partition"])
SPAN = Gauge("copysieve_span_records", "Offsets between watermark and last taken", ["partition"])
ASSIGNED = Gauge("copysieve_partitions_assigned", "Partitions this replica owns")
GROUP_STABLE = Gauge("copysieve_group_stable", "1 while the member is stable in its group")
REBALANCES = Counter("copysieve_rebalances_total", "Rebalance callbacks", ["kind"])
COMMITS = Counter("copysieve_commits_total", "Offset commits", ["result"])
LAST_POLL = Gauge("copysieve_last_poll_timestamp_seconds", "When poll() last returned")
LAST_COMMIT = Gauge("copysieve_last_commit_timestamp_seconds", "When a commit last succeeded")
PUBLISHED = Counter("copysieve_published_total", "Results acknowledged by Kafka", ["kind"])
DEAD_LETTERS = Counter("copysieve_dead_letters_total", "Dead letters sent", ["reason"])
DELIVERY_FAILURES = Counter(
    "copysieve_delivery_failures_total", "Results that Kafka did not take; work starts again"
)
RESULTS_REFUSED = Counter(
    "copysieve_results_refused_total",
    "Uploads whose results Kafka takes in no way; each became a dead letter",
    ["kind"],
)
DROPPED = Counter(
    "copysieve_dropped_total", "Work dropped because its partition went to another owner"
)

# -- pipeline --
IN_FLIGHT_RECORDS = Gauge("copysieve_in_flight_records", "Records taken and not finished")
IN_FLIGHT_BYTES = Gauge("copysieve_in_flight_bytes", "Encoded bytes of records in flight")
FETCHED_IN_FLIGHT = Gauge("copysieve_in_flight_fetched_bytes", "Bytes of fetched images held")
BANKS_WITHOUT_RULE = Gauge(
    "copysieve_hotset_banks_without_rule", "Enabled block banks that can enforce nothing"
)
BANK_THRESHOLD = Gauge(
    "copysieve_bank_threshold", "Score from which a bank matches; infinite: none", ["bank"]
)
RECORDS_LOST = Counter(
    "copysieve_records_lost_total", "Records that retention took before they were screened"
)
DECODED_BYTES = Gauge("copysieve_in_flight_decoded_bytes", "Bytes reserved for decoded pictures")
PAUSED = Gauge("copysieve_paused", "1 while taking is paused", ["why"])
QUEUE = Gauge("copysieve_queue_depth", "Uploads waiting for a stage", ["stage"])
STAGE_SECONDS = Histogram(
    "copysieve_stage_seconds", "Time in one stage", ["stage"], buckets=_SECONDS
)
END_TO_END = Histogram(
    "copysieve_end_to_end_seconds",
    "From taking a record to Kafka's acknowledgement",
    buckets=_SECONDS,
)
BATCH_SIZE = Histogram("copysieve_batch_size", "Uploads in a batch", buckets=_BATCH)
BATCH_CLOSED = Counter("copysieve_batches_total", "Batches by what closed them", ["reason"])
DEVICE_BUSY = Counter("copysieve_device_busy_seconds_total", "Time the model and search took")
UPLOADS = Counter("copysieve_uploads_total", "Terminal results", ["outcome"])
UNSCREENED = Counter("copysieve_unscreened_total", "Uploads not screened", ["reason"])
FETCHES = Counter("copysieve_fetches_total", "Fetches of linked images", ["result"])
FETCHED_BYTES = Counter("copysieve_fetched_bytes_total", "Bytes fetched")
RETRIES = Counter("copysieve_fetch_retries_total", "Fetches tried once more")
BREAKERS_OPENED = Counter(
    "copysieve_fetch_breakers_opened_total",
    "Times a host, or all of them, were given up",
    ["scope"],
)
HOSTS_OPEN = Gauge("copysieve_fetch_hosts_open", "Hosts that are sent nothing but probes")
OUTAGE = Gauge("copysieve_fetch_outage", "1 while hosts that many uploads need are away")
PARKED = Gauge("copysieve_fetch_parked_uploads", "Uploads that wait for the end of an outage")
DECODES = Counter("copysieve_decodes_total", "Decoded pictures", ["format"])
RENDITIONS = Histogram(
    "copysieve_renditions", "Renditions described of an upload", buckets=(1, 2, 3, 4, 6, 8, 16)
)
RENDITIONS_LEFT_OUT = Counter(
    "copysieve_renditions_left_out_total", "Uploads of which not all renditions were described"
)
LARGE_WAITING = Gauge("copysieve_decode_large_waiting", "Large pictures that wait to be decoded")
DECODERS_REPLACED = Counter(
    "copysieve_decoders_replaced_total", "Sandboxed decoders that were replaced", ["reason"]
)
MATCHES = Counter("copysieve_matches_total", "Matches by bank", ["bank", "mode"])
SUPPRESSED = Counter("copysieve_suppressed_total", "Matches overruled by an allow bank", ["bank"])
FLOODS = Gauge("copysieve_floods", "Banks and references in flood, by bank", ["bank", "scope"])
FLOODS_BEGUN = Counter(
    "copysieve_floods_begun_total",
    "Floods that this replica saw first",
    ["bank", "scope"],
)
FLOOD_DROPPED = Counter(
    "copysieve_flood_dropped_total", "Matched images that the flood alarm had no room to count"
)
FLOOD_FAILURES = Counter(
    "copysieve_flood_failures_total", "Times that floods could not be told; they stay as they were"
)
DRIFT_UPLOADS = Counter(
    "copysieve_drift_uploads_total",
    "Distinct uploads without an enforced match, by where they are at a bank's calibrated level",
    ["bank", "level", "result"],
)
DRIFT = Gauge(
    "copysieve_drift",
    "Evidence that uploads pass a level more, or less often than calibrated; 1: an alarm",
    ["bank", "level", "direction"],
)
TOP_SCORE = Histogram("copysieve_top_score", "Best score of each screened upload", buckets=_SCORES)

HTTP_CUT = Counter(
    "copysieve_http_cut_total", "Connections to this port that were ended early", ["reason"]
)

# -- canaries --
CANARIES_PER_MINUTE = Gauge("copysieve_canaries_per_minute", "As set; 0 where they are off")
CANARY_LEASE = Gauge("copysieve_canary_lease_held", "1 on the replica that publishes canaries")
CANARIES_PUBLISHED = Counter("copysieve_canaries_published_total", "Canaries that Kafka has taken")
CANARIES_RECOGNISED = Counter(
    "copysieve_canaries_recognised_total", "Canaries that came back as a match, in time"
)
CANARIES_MISSED = Counter("copysieve_canaries_missed_total", "Canaries that did not", ["reason"])
CANARY_SECONDS = Histogram(
    "copysieve_canary_seconds", "From publishing a canary to reading its match", buckets=_SECONDS
)
CANARY_RECOGNISED = Gauge(
    "copysieve_canary_last_recognised_timestamp_seconds", "When a canary last came back as a match"
)
CANARIES_UNPAIRED = Gauge(
    "copysieve_canaries_unpaired",
    "Pictures of the folder that no reference is of, and canary references without a picture",
    ["what"],
)
CANARY_FAILURES = Counter(
    "copysieve_canary_failures_total", "Times that canaries could not be published", ["reason"]
)

# -- hot set --
REFERENCES = Gauge("copysieve_hotset_references", "References in the mirror")
ROWS = Gauge("copysieve_hotset_rows", "Rows of the index")
EPOCH = Gauge("copysieve_hotset_epoch", "Epoch of the mirror")
SEQ = Gauge("copysieve_hotset_seq", "Last change applied")
SYNCED = Gauge("copysieve_hotset_synced_timestamp_seconds", "When the mirror last was up to date")
STALE = Gauge(
    "copysieve_hotset_stale",
    "1 while the mirror is not known to equal the store, for longer than allowed",
)
SHRUNK = Gauge("copysieve_hotset_shrunk", "1 while a shrunken store awaits `hotset accept`")
DAMAGED = Gauge(
    "copysieve_hotset_damaged", "1 while the store holds or lacks values that it should not"
)
UNUSABLE = Gauge(
    "copysieve_hotset_unusable",
    "References that the mirror holds and cannot match: no descriptors by its model, or no bank",
)
RESYNCS = Counter("copysieve_hotset_resyncs_total", "Snapshot loads", ["reason"])
REJECTED = Counter("copysieve_hotset_rejected_total", "Entries of Redis that were not usable")
CHANGE_SECONDS = Histogram(
    "copysieve_hotset_change_seconds", "From writing a change to applying it", buckets=_SECONDS
)
