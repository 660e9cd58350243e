// From Prometheus' text to what a chart shows: rates and percentiles of the seconds between two looks.

/** {name with labels: value} of an exposition. */
export function parsed(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const at = line.lastIndexOf(" ");
    if (at > 0 && line[0] !== "#") found.set(line.slice(0, at), Number(line.slice(at + 1)));
  }
  return found;
}

/** What happened from one look to the next, `seconds` later; null for what nothing is known of. */
export function between(before, after, seconds) {
  const answered = grown(before, after, 'diptych_requests_total{code="200",route="/predict"}');
  const batches = grown(before, after, "diptych_batch_queries_count");
  const buckets = bucketsOf(before, after, "diptych_stage_seconds", 'stage="total"');
  return {
    throughput: answered / seconds,
    p50: milliseconds(percentile(buckets, 0.5)),
    p99: milliseconds(percentile(buckets, 0.99)),
    batch: batches ? grown(before, after, "diptych_batch_queries_sum") / batches : null,
  };
}

/** The value below which a `share` of the counts lies, inside a bucket by a straight line; null without counts. */
export function percentile(buckets, share) {
  const all = buckets.at(-1)?.count ?? 0;
  if (!all) return null;
  let [floor, below] = [0, 0];
  for (const { bound, count } of buckets) {
    if (count >= share * all) {
      if (bound === Infinity) return floor; // slower than the last bound: how much, nobody knows
      return floor + ((bound - floor) * (share * all - below)) / (count - below);
    }
    [floor, below] = [bound, count];
  }
  return floor;
}

function bucketsOf(before, after, name, label) {
  const found = [];
  for (const key of after.keys()) {
    const bound = key.startsWith(`${name}_bucket{`) && key.includes(label) && /le="([^"]+)"/.exec(key);
    if (bound) found.push({ bound: bound[1] === "+Inf" ? Infinity : Number(bound[1]), count: grown(before, after, key) });
  }
  return found.sort((one, other) => one.bound - other.bound);
}

function grown(before, after, key) {
  const now = after.get(key) ?? 0;
  const then = before.get(key) ?? 0;
  return now >= then ? now - then : now; // the service has begun anew
}

function milliseconds(seconds) {
  return seconds === null ? null : seconds * 1000;
}
