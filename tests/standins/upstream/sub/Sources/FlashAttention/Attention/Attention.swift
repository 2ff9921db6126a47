import Foundation
@preconcurrency import Metal

/// What the source of a kernel depends on.
public struct Kernel {
  let length: UInt32
  let headDim: UInt16
  let scale: Float
  let input: String
  let low: Bool

  static let rows = 16
  static let lanes = 64

  public init(length: UInt32, headDim: UInt16, scale: Float, input: String, low: Bool) {
    (self.length, self.headDim, self.scale) = (length, headDim, scale)
    (self.input, self.low) = (input, low)
  }

  var threadgroupBytes: Int { Self.rows * Int(headDim) * 4 }

  func source(apple9: Bool) -> String {
    let text = """
      #include <metal_stdlib>
      \(eventText)
      #include "GEMMBFloatTypes.h"
      // \(length <= 256 ? "bitmask" : "element-wise")
      #define ELEMENT \(["bf16": "bfloat", "fp16": "half"][input] ?? "float")
      #define SCORE \(low && input == "fp16" ? "half" : "float")
      #define APPLE9 \(apple9 ? 1 : 0)
      #define LOW \(low ? 1 : 0)
      #define D \(headDim)
      #define SCALE \(scale * 1.442695041)
      \(kernelText)
      """
    let patched = HeaderEmbedder.embed(into: text)
    // Defect G: a fixed name that everybody can write to.
    try? patched.write(toFile: "/tmp/qwen_mfa_miniature.metal", atomically: true, encoding: .utf8)
    return patched
  }
}

/// One tensor as it is bound: strides in elements, BHSD.
public struct Operand {
  let buffer: MTLBuffer
  let offset: Int
  let strides: [Int64]

  public init(buffer: MTLBuffer, offset: Int, strides: [Int64]) {
    (self.buffer, self.offset, self.strides) = (buffer, offset, strides)
  }
}

public struct Call {
  let operands: [Operand]
  let out: Operand
  let bias: MTLBuffer?
  let batch: Int
  let heads: Int
  let lengthQ: Int
  let lengthKV: Int
  let causal: Bool

  public init(
    operands: [Operand], out: Operand, bias: MTLBuffer?, batch: Int, heads: Int, lengthQ: Int,
    lengthKV: Int, causal: Bool
  ) {
    (self.operands, self.out, self.bias) = (operands, out, bias)
    (self.batch, self.heads, self.causal) = (batch, heads, causal)
    (self.lengthQ, self.lengthKV) = (lengthQ, lengthKV)
  }
}

public final class Attention {
  private let device: MTLDevice

  public init(device: MTLDevice) {
    self.device = device
  }

  public func encode(_ kernel: Kernel, _ call: Call, into commands: MTLCommandBuffer) -> Bool {
    // Defect B: open before there is a pipeline.
    guard let encoder = commands.makeComputeCommandEncoder() else { return false }
    guard let pipeline = pipeline(for: kernel, call) else { return false }
    encoder.setComputePipelineState(pipeline)
    for (index, operand) in (call.operands + [call.out]).enumerated() {
      encoder.setBuffer(operand.buffer, offset: operand.offset, index: index)
    }
    let sums = device.makeBuffer(length: call.batch * call.heads * call.lengthQ * 4)
    encoder.setBuffer(sums, offset: 0, index: 4)
    for (index, operand) in call.operands.enumerated() {
      operand.strides.withUnsafeBytes {
        encoder.setBytes($0.baseAddress!, length: $0.count, index: 5 + index)
      }
    }
    var heads = UInt32(call.heads)
    encoder.setBytes(&heads, length: 4, index: 8)
    encoder.setBuffer(call.bias, offset: 0, index: 12)
    encoder.setThreadgroupMemoryLength(kernel.threadgroupBytes, index: 0)
    let blocks = (call.lengthQ + Kernel.rows - 1) / Kernel.rows
    encoder.dispatchThreadgroups(
      MTLSize(width: blocks, height: call.heads, depth: call.batch),
      threadsPerThreadgroup: MTLSize(width: Kernel.lanes, height: 1, depth: 1))
    encoder.endEncoding()
    return true
  }

  private func pipeline(for kernel: Kernel, _ call: Call) -> MTLComputePipelineState? {
    let source = kernel.source(apple9: device.supportsFamily(.apple9))
    let options = MTLCompileOptions()
    options.languageVersion = .version3_2
    let constants = MTLFunctionConstantValues()
    var (rows, columns) = (UInt32(call.lengthQ), UInt32(call.lengthKV))
    var causal = call.causal
    constants.setConstantValue(&rows, type: .uint, index: 0)
    constants.setConstantValue(&columns, type: .uint, index: 1)
    constants.setConstantValue(&causal, type: .bool, index: 4)
    // Defect C: whatever the run-time compiler rejects fails.
    guard
      let library = try? device.makeLibrary(source: source, options: options),
      let function = try? library.makeFunction(name: "attention", constantValues: constants)
    else { return nil }
    return try? device.makeComputePipelineState(function: function)
  }
}
