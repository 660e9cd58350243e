// Parse Prometheus text, and compute rates and percentiles between two samples.

/** Parse an exposition into a Map from name with labels to value. */
export function parse(text) {
  const values = new Map();
  for (const line of text.split("\n")) {
    const split = line.lastIndexOf(" ");
    if (split > 0 && line[0] !== "#") values.set(line.slice(0, split), Number(line.slice(split + 1)));
  }
  return values;
}

/** Return rates and percentiles between two samples that are `seconds` apart; null if unknown. */
export function between(before, after, seconds) {
  const answers = increase(before, after, 'diptych_requests_total{code="200",route="/predict"}');
  const batches = increase(before, after, "diptych_batch_queries_count");
  const buckets = bucketIncreases(before, after, "diptych_stage_seconds", 'stage="total"');
  return {
    throughput: answers / seconds,
    p50: milliseconds(percentile(buckets, 0.5)),
    p99: milliseconds(percentile(buckets, 0.99)),
    batch: batches ? increase(before, after, "diptych_batch_queries_sum") / batches : null,
  };
}

/** Return the value below which a `share` of the counts lies, interpolated within a bucket; null without counts. */
export function percentile(buckets, share) {
  const total = buckets.at(-1)?.count ?? 0;
  if (!total) return null;
  let [lowerBound, lowerCount] = [0, 0];
  for (const { bound, count } of buckets) {
    if (count >= share * total) {
      if (bound === Infinity) return lowerBound; // above the last bound; by how much is unknown
      return lowerBound + ((bound - lowerBound) * (share * total - lowerCount)) / (count - lowerCount);
    }
    [lowerBound, lowerCount] = [bound, count];
  }
  return lowerBound;
}

function bucketIncreases(before, after, name, label) {
  const buckets = [];
  for (const key of after.keys()) {
    const bound = key.startsWith(`${name}_bucket{`) && key.includes(label) && /le="([^"]+)"/.exec(key);
    if (bound) buckets.push({ bound: bound[1] === "+Inf" ? Infinity : Number(bound[1]), count: increase(before, after, key) });
  }
  return buckets.sort((one, other) => one.bound - other.bound);
}

function increase(before, after, key) {
  const now = after.get(key) ?? 0;
  const then = before.get(key) ?? 0;
  return now >= then ? now - then : now; // the service was restarted
}

function milliseconds(seconds) {
  return seconds === null ? null : seconds * 1000;
}
