import Foundation
import MFAFFI

/// A deterministic generator, so that a failure can be repeated.
struct SplitMix: RandomNumberGenerator {
  var state: UInt64

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return z ^ (z >> 31)
  }
}

/// A dense [batch, heads, rows, dim] problem in FP32.
struct Problem {
  var batch = 1
  var heads = 1
  var queries = 1
  var keys = 1
  var dim = 1
  var scale: Float = 1
  var causal = false
  /// (batch, head, query, key) → bias; -infinity removes the key.
  var bias: (Int, Int, Int, Int) -> Double = { _, _, _, _ in 0 }
  var q: [Float] = []
  var k: [Float] = []
  var v: [Float] = []

  init(batch: Int, heads: Int, queries: Int, keys: Int, dim: Int, seed: UInt64) {
    (self.batch, self.heads, self.queries, self.keys, self.dim) = (batch, heads, queries, keys, dim)
    scale = 1 / Float(dim).squareRoot()
    var random = SplitMix(state: seed)
    func values(_ count: Int) -> [Float] {
      (0..<count).map { _ in Float.random(in: -2...2, using: &random) }
    }
    q = values(batch * heads * queries * dim)
    k = values(batch * heads * keys * dim)
    v = values(batch * heads * keys * dim)
  }

  var outputCount: Int { batch * heads * queries * dim }

  /// Softmax attention in double precision, straight from its definition.
  func reference() -> [Double] {
    var out = [Double](repeating: 0, count: outputCount)
    for b in 0..<batch {
      for h in 0..<heads {
        for i in 0..<queries {
          row(b, h, i).enumerated().forEach { d, value in
            out[((b * heads + h) * queries + i) * dim + d] = value
          }
        }
      }
    }
    return out
  }

  private func row(_ b: Int, _ h: Int, _ i: Int) -> [Double] {
    let head = b * heads + h
    let scores = (0..<keys).map { j -> Double in
      if causal && j > i { return -.infinity }
      var dot = 0.0
      for d in 0..<dim {
        dot += Double(q[(head * queries + i) * dim + d]) * Double(k[(head * keys + j) * dim + d])
      }
      return dot * Double(scale) + bias(b, h, i, j)
    }
    let largest = scores.max() ?? -.infinity
    var result = [Double](repeating: 0, count: dim)
    if largest == -.infinity { return result }
    let weights = scores.map { exp($0 - largest) }
    let total = weights.reduce(0, +)
    for (j, weight) in weights.enumerated() where weight > 0 {
      for d in 0..<dim {
        result[d] += weight / total * Double(v[(head * keys + j) * dim + d])
      }
    }
    return result
  }
}

/// [heads, rows, columns] with the last two axes exchanged.
func transposed<T>(_ x: [T], rows: Int, columns: Int) -> [T] {
  var result = x
  for head in 0..<(x.count / (rows * columns)) {
    for r in 0..<rows {
      for c in 0..<columns {
        result[(head * columns + c) * rows + r] = x[(head * rows + r) * columns + c]
      }
    }
  }
  return result
}

func largestDifference(_ got: [Float], _ want: [Double]) -> Double {
  zip(got, want).map { abs(Double($0) - $1) }.reduce(0) { $1.isNaN ? .infinity : max($0, $1) }
}
