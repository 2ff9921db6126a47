import Foundation
@preconcurrency import Metal

/// An additive mask of any strides as B x H x Sq x Skv, by a kernel whose lanes never meet.
public struct Mask {
  let operand: Operand
  let shape: [Int64]

  public init(operand: Operand, shape: [Int64]) {
    (self.operand, self.shape) = (operand, shape)
  }

  private static let source = """
    #include <metal_stdlib>
    using namespace metal;

    kernel void expand(
      device const float *mask [[buffer(0)]],
      device float *out [[buffer(1)]],
      constant int64_t *shape [[buffer(2)]],
      constant int64_t *strides [[buffer(3)]],
      constant uint4 &sizes [[buffer(4)]],
      uint3 at [[thread_position_in_grid]]
    ) {
      const uint place[4] = {at.z / sizes.y, at.z % sizes.y, at.y, at.x};
      int64_t from = 0;
      for (uint i = 0; i < 4; i++) {
        from += shape[i] == 1 ? 0 : int64_t(place[i]) * strides[i];
      }
      out[(at.z * sizes.z + at.y) * sizes.w + at.x] = mask[from];
    }
    """

  public func expand(
    to sizes: [UInt32], device: MTLDevice, into commands: MTLCommandBuffer
  ) -> MTLBuffer? {
    let options = MTLCompileOptions()
    options.languageVersion = .version3_2
    // Defect C, too.
    guard
      let library = try? device.makeLibrary(source: Self.source, options: options),
      let function = library.makeFunction(name: "expand"),
      let pipeline = try? device.makeComputePipelineState(function: function),
      let out = device.makeBuffer(length: sizes.reduce(4) { $0 * Int($1) }),
      let encoder = commands.makeComputeCommandEncoder()
    else { return nil }
    encoder.setComputePipelineState(pipeline)
    encoder.setBuffer(operand.buffer, offset: operand.offset, index: 0)
    encoder.setBuffer(out, offset: 0, index: 1)
    for (index, numbers) in [shape, operand.strides].enumerated() {
      numbers.withUnsafeBytes {
        encoder.setBytes($0.baseAddress!, length: $0.count, index: 2 + index)
      }
    }
    sizes.withUnsafeBytes { encoder.setBytes($0.baseAddress!, length: $0.count, index: 4) }
    encoder.dispatchThreads(
      MTLSize(width: Int(sizes[3]), height: Int(sizes[2]), depth: Int(sizes[0] * sizes[1])),
      threadsPerThreadgroup: MTLSize(width: 32, height: 4, depth: 1))
    encoder.endEncoding()
    return out
  }
}
