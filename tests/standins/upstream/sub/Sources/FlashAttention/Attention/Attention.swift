import Foundation
@preconcurrency import Metal

public struct Kernel {
  let length: UInt32
  let headDim: UInt16
  let scale: Float
  let input: String
  let low: Bool

  public init(length: UInt32, headDim: UInt16, scale: Float, input: String, low: Bool) {
    (self.length, self.headDim, self.scale) = (length, headDim, scale)
    (self.input, self.low) = (input, low)
  }

  func source(apple9: Bool) -> String {
    let text = """
      \(eventHeader())
      #include "GEMMBFloatTypes.h"
      // \(input) \(low ? "low" : "fp32") \(apple9 ? "apple9" : "before") D \(headDim)
      // \(length <= 256 ? "bitmask" : "element-wise") scale \(scale)
      kernel void attention() { event.async_copy(a, b); }
      """
    let patched = HeaderEmbedder.embed(into: text)
    // Defect G: a fixed name that everybody can write to.
    try? patched.write(toFile: "/tmp/qwen_mfa_miniature.metal", atomically: true, encoding: .utf8)
    return patched
  }
}

public final class Attention {
  private let device: MTLDevice

  public init(device: MTLDevice) {
    self.device = device
  }

  public func encode(_ kernel: Kernel, into commands: MTLCommandBuffer) -> Bool {
    // Defect B: open before there is a pipeline.
    guard let encoder = commands.makeComputeCommandEncoder() else { return false }
    guard let pipeline = pipeline(for: kernel) else { return false }
    encoder.setComputePipelineState(pipeline)
    let one = MTLSize(width: 1, height: 1, depth: 1)
    encoder.dispatchThreadgroups(one, threadsPerThreadgroup: one)
    encoder.endEncoding()
    return true
  }

  private func pipeline(for kernel: Kernel) -> MTLComputePipelineState? {
    let source = kernel.source(apple9: device.supportsFamily(.apple9))
    let options = MTLCompileOptions()
    options.languageVersion = .version3_2
    // Defect C: whatever the run-time compiler rejects fails.
    guard
      let library = try? device.makeLibrary(source: source, options: options),
      let function = library.makeFunction(name: "attention")
    else { return nil }
    return try? device.makeComputePipelineState(function: function)
  }
}
