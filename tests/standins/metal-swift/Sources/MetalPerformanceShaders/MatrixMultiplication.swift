// Declarations only: upstream's sparse indexer uses them, and nothing of ours ever calls it.

import Metal

public enum MPSDataType: UInt32, Sendable {
  case float32 = 0x1000_0020
  case float16 = 0x1000_0010
  case bFloat16 = 0x9000_0010
}

public final class MPSMatrixDescriptor: NSObject {
  public init(rows _: Int, columns _: Int, rowBytes _: Int, dataType _: MPSDataType) {}
}

public final class MPSMatrix: NSObject {
  public init(buffer _: MTLBuffer, offset _: Int, descriptor _: MPSMatrixDescriptor) {}
}

public final class MPSMatrixMultiplication: NSObject {
  public init(
    device _: MTLDevice, transposeLeft _: Bool, transposeRight _: Bool, resultRows _: Int,
    resultColumns _: Int, interiorColumns _: Int, alpha _: Double, beta _: Double
  ) {}

  public func encode(
    commandBuffer _: MTLCommandBuffer, leftMatrix _: MPSMatrix, rightMatrix _: MPSMatrix,
    resultMatrix _: MPSMatrix
  ) {}
}
