import MFAFFI
import Testing

/// The published call, seen from Swift, against a reference computed in Swift.
@Suite struct ForwardTests {
  let engine: Engine

  init() throws { engine = try Engine() }

  @Test(arguments: [
    (1, 1, 1, 1, 1), (1, 2, 7, 5, 3), (2, 3, 33, 70, 16), (1, 2, 130, 300, 64), (1, 1, 50, 50, 128),
    (1, 1, 9, 40, 257),
  ])
  func agreesWithTheReference(sizes: (Int, Int, Int, Int, Int)) throws {
    let p = Problem(
      batch: sizes.0, heads: sizes.1, queries: sizes.2, keys: sizes.3, dim: sizes.4, seed: 1)
    #expect(largestDifference(try engine.forward(p), p.reference()) < 1e-5)
  }

  @Test func causalIsTopLeftAligned() throws {
    var p = Problem(batch: 1, heads: 2, queries: 40, keys: 90, dim: 32, seed: 2)
    p.causal = true
    #expect(largestDifference(try engine.forward(p), p.reference()) < 1e-5)
  }

  @Test(arguments: 0..<16)
  func transposedOperands(bits: Int) throws {
    let p = Problem(batch: 2, heads: 2, queries: 19, keys: 31, dim: 24, seed: 3)
    let flags = (0..<4).map { bits >> $0 & 1 == 1 }
    func stored(_ x: [Float], _ rows: Int, _ flag: Bool) -> [Float] {
      flag ? transposed(x, rows: rows, columns: p.dim) : x
    }
    let out = try Buffer(engine, bytes: 4 * p.outputCount)
    try engine.forward(
      p, q: Buffer(engine, stored(p.q, p.queries, flags[0])),
      k: Buffer(engine, stored(p.k, p.keys, flags[1])),
      v: Buffer(engine, stored(p.v, p.keys, flags[2])), out: out, transposes: flags)
    var got = out.read(Float.self, count: p.outputCount)
    if flags[3] { got = transposed(got, rows: p.dim, columns: p.queries) }
    #expect(largestDifference(got, p.reference()) < 1e-5)
  }

  @Test func stridedOperandsAreReadInPlace() throws {
    // [batch, rows, heads, dim] memory, described as [batch, heads, rows, dim].
    let p = Problem(batch: 2, heads: 3, queries: 20, keys: 20, dim: 16, seed: 4)
    func interleaved(_ x: [Float]) -> [Float] {
      var y = x
      for b in 0..<2 {
        for h in 0..<3 {
          for r in 0..<20 {
            for d in 0..<16 {
              y[((b * 20 + r) * 3 + h) * 16 + d] = x[((b * 3 + h) * 20 + r) * 16 + d]
            }
          }
        }
      }
      return y
    }
    let shape: [Int64] = [2, 3, 20, 16]
    let strides: [Int64] = [20 * 3 * 16, 16, 3 * 16, 1]
    func strided(_ x: [Float]) throws -> Buffer {
      try Buffer(engine, interleaved(x), shape: shape, strides: strides)
    }
    let out = try strided([Float](repeating: 0, count: p.outputCount))
    try engine.forward(p, q: strided(p.q), k: strided(p.k), v: strided(p.v), out: out)
    let got = out.read(Float.self, count: p.outputCount)
    let want = interleaved(p.reference().map { Float($0) }).map { Double($0) }
    #expect(largestDifference(got, want) < 1e-5)
  }

  @Test func aKeyHeadOfStrideZeroServesAllHeads() throws {
    var p = Problem(batch: 1, heads: 4, queries: 10, keys: 12, dim: 8, seed: 5)
    let head = Array(p.k[..<(12 * 8)])
    p.k = head + head + head + head
    let k = try Buffer(engine, head, shape: [1, 4, 12, 8], strides: [0, 0, 8, 1])
    let out = try Buffer(engine, bytes: 4 * p.outputCount)
    try engine.forward(p, q: Buffer(engine, p.q), k: k, v: Buffer(engine, p.v), out: out)
    #expect(largestDifference(out.read(Float.self, count: p.outputCount), p.reference()) < 1e-5)
  }

  @Test func bfloat16InAndOut() throws {
    var p = Problem(batch: 1, heads: 2, queries: 30, keys: 60, dim: 64, seed: 6)
    func bits(_ x: [Float]) -> [UInt16] {
      x.map { UInt16(truncatingIfNeeded: $0.bitPattern >> 16) }
    }
    func floats(_ x: [UInt16]) -> [Float] { x.map { Float(bitPattern: UInt32($0) << 16) } }
    let (q, k, v) = (bits(p.q), bits(p.k), bits(p.v))
    (p.q, p.k, p.v) = (floats(q), floats(k), floats(v))
    let out = try Buffer(engine, bytes: 2 * p.outputCount)
    try engine.forward(
      p, q: Buffer(engine, q), k: Buffer(engine, k), v: Buffer(engine, v), out: out,
      input: MFA_PRECISION_BF16, output: MFA_PRECISION_BF16)
    let want = p.reference()
    for (got, exact) in zip(floats(out.read(UInt16.self, count: p.outputCount)), want) {
      // One half unit in the last place.
      #expect(abs(Double(got) - exact) <= abs(exact) / 256 + 1e-5)
    }
  }

  @Test func outputKeepsToItsPrecision() throws {
    let p = Problem(batch: 1, heads: 1, queries: 5, keys: 5, dim: 8, seed: 7)
    let out = try Buffer(engine, [UInt16](repeating: 0xabcd, count: 2 * p.outputCount))
    try engine.forward(
      p, q: Buffer(engine, p.q), k: Buffer(engine, p.k), v: Buffer(engine, p.v), out: out,
      output: MFA_PRECISION_FP16)
    let halves = out.read(UInt16.self, count: 2 * p.outputCount)
    #expect(halves[p.outputCount...].allSatisfy { $0 == 0xabcd })
    #expect(halves[..<p.outputCount].contains { $0 != 0xabcd })
  }

  @Test func namesOfPrecisions() throws {
    let p = Problem(batch: 1, heads: 1, queries: 4, keys: 6, dim: 8, seed: 8)
    let buffers = try [p.q, p.k, p.v].map { try Buffer(engine, $0) }
    let out = try Buffer(engine, bytes: 4 * p.outputCount)
    func call(_ name: String?) -> Int32 {
      mfa_attention_forward_str(
        engine.handle, buffers[0].handle, buffers[1].handle, buffers[2].handle, out.handle, 1, 4, 6,
        1, 8, p.scale, false, name, nil, "FP32", false, false, false, false, nil, 0, nil, nil, 0, 0,
        0)
    }
    for name in ["fp32", "Float32", nil] {
      #expect(call(name) == MFA_SUCCESS)
      #expect(largestDifference(out.read(Float.self, count: p.outputCount), p.reference()) < 1e-5)
    }
    #expect(call("fp64") == MFA_ERROR_INVALID_ARGS)
  }
}
