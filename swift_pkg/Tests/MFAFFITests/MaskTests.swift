import MFAFFI
import Testing

@Suite struct MaskTests {
  let engine: Engine

  init() throws { engine = try Engine() }

  private func problem(_ seed: UInt64) -> Problem {
    Problem(batch: 2, heads: 3, queries: 21, keys: 37, dim: 16, seed: seed)
  }

  @Test func keyPaddingRightAligned() throws {
    var p = problem(1)
    let keep = (0..<37).map { UInt8($0 % 5 == 0 ? 0 : 1) }
    p.bias = { _, _, _, j in keep[j] == 0 ? -.infinity : 0 }
    let mask = Mask.of(
      keep, shape: [37], strides: [1], type: MFA_MASK_TYPE_BOOL, scalar: MFA_MASK_SCALAR_BYTE)
    #expect(largestDifference(try engine.forward(p, mask: mask), p.reference()) < 1e-5)
  }

  @Test func additivePerRowIsAddedAfterTheScale() throws {
    var p = problem(2)
    var random = SplitMix(state: 9)
    let values = (0..<(21 * 37)).map { _ in Float.random(in: -3...3, using: &random) }
    p.bias = { _, _, i, j in Double(values[i * 37 + j]) }
    let mask = Mask.of(
      values, shape: [21, 37], strides: [37, 1], type: MFA_MASK_TYPE_ADDITIVE,
      scalar: MFA_MASK_SCALAR_FP32)
    #expect(largestDifference(try engine.forward(p, mask: mask), p.reference()) < 1e-5)
  }

  @Test func perBatchAndHeadBroadcastOverRows() throws {
    var p = problem(3)
    var random = SplitMix(state: 10)
    let values = (0..<(2 * 3 * 37)).map { _ in UInt16.random(in: 0x3c00...0x4200, using: &random) }
    p.bias = { b, h, _, j in Double(halfValue(values[(b * 3 + h) * 37 + j])) }
    let mask = Mask.of(
      values, shape: [2, 3, 1, 37], strides: [111, 37, 0, 1], type: MFA_MASK_TYPE_ADDITIVE,
      scalar: MFA_MASK_SCALAR_FP16)
    #expect(largestDifference(try engine.forward(p, mask: mask), p.reference()) < 1e-5)
  }

  @Test func stridesStepOverElements() throws {
    var p = problem(4)
    let every = (0..<(37 * 2)).map { at -> Float in
      if at % 2 == 1 { return 777 }
      return at % 3 == 0 ? -Float.infinity : 0
    }
    p.bias = { _, _, _, j in Double(every[2 * j]) }
    let mask = Mask.of(
      every, shape: [1, 37], strides: [0, 2], type: MFA_MASK_TYPE_ADDITIVE,
      scalar: MFA_MASK_SCALAR_FP32)
    #expect(largestDifference(try engine.forward(p, mask: mask), p.reference()) < 1e-5)
  }

  @Test func aRowWithoutKeysIsZero() throws {
    var p = problem(5)
    var keep = [UInt8](repeating: 1, count: 21 * 37)
    for j in 0..<37 { keep[4 * 37 + j] = 0 }
    p.bias = { _, _, i, _ in i == 4 ? -.infinity : 0 }
    let mask = Mask.of(
      keep, shape: [21, 37], strides: [37, 1], type: MFA_MASK_TYPE_BOOL,
      scalar: MFA_MASK_SCALAR_BYTE)
    let got = try engine.forward(p, mask: mask)
    #expect(got[(4 * 16)..<(5 * 16)].allSatisfy { $0 == 0 })
    #expect(largestDifference(got, p.reference()) < 1e-5)
  }
}

/// The value of a normal binary16.
private func halfValue(_ bits: UInt16) -> Float {
  Float(bitPattern: (UInt32(bits) << 13) + 0x3800_0000)
}
