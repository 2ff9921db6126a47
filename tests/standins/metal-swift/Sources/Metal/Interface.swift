// The part of Metal's interface that the pinned source and our overlay use, as Apple documents it.

@_exported import Foundation

public enum MTLGPUFamily: Int, Sendable {
  case apple1 = 1001
  case apple2, apple3, apple4, apple5, apple6, apple7, apple8, apple9, apple10
  case mac2 = 2002
  case metal3 = 5001
}

public enum MTLLanguageVersion: UInt, Sendable {
  case version2_4 = 0x20004
  case version3_0 = 0x30000
  case version3_1 = 0x30001
  case version3_2 = 0x30002
  case version4_0 = 0x40000
}

public enum MTLMathMode: Int, Sendable {
  case safe = 0
  case relaxed, fast
}

public enum MTLMathFloatingPointFunctions: Int, Sendable {
  case fast = 0
  case precise
}

public enum MTLLibraryOptimizationLevel: Int, Sendable {
  case `default` = 0
  case size
}

public enum MTLDataType: UInt, Sendable {
  case float = 3
  case half = 16
  case int = 29
  case uint = 33
  case short = 37
  case ushort = 41
  case char = 45
  case uchar = 49
  case bool = 53
  case bfloat = 121
}

public struct MTLSize: Sendable {
  public var width: Int
  public var height: Int
  public var depth: Int

  public init(width: Int, height: Int, depth: Int) {
    (self.width, self.height, self.depth) = (width, height, depth)
  }
}

public struct MTLResourceOptions: OptionSet, Sendable {
  public let rawValue: UInt

  public init(rawValue: UInt) {
    self.rawValue = rawValue
  }

  public static let storageModeShared = MTLResourceOptions([])
  public static let storageModeManaged = MTLResourceOptions(rawValue: 1 << 4)
  public static let storageModePrivate = MTLResourceOptions(rawValue: 2 << 4)
}

public struct MTLPipelineOption: OptionSet, Sendable {
  public let rawValue: UInt

  public init(rawValue: UInt) {
    self.rawValue = rawValue
  }
}

public final class MTLCompileOptions: NSObject, @unchecked Sendable {
  /// Without one that is stated, Metal takes what the main program's SDK implies: here an old one.
  public var languageVersion = MTLLanguageVersion.version2_4
  public var mathMode = MTLMathMode.fast
  public var mathFloatingPointFunctions = MTLMathFloatingPointFunctions.fast
  public var optimizationLevel = MTLLibraryOptimizationLevel.default
  public var preserveInvariance = false
  public var preprocessorMacros: [String: NSObject]?

  override public init() {}
}

public final class MTLFunctionConstantValues: NSObject, @unchecked Sendable {
  public private(set) var values: [Int: MTLDataType] = [:]
  public private(set) var bytes: [Int: [UInt8]] = [:]

  override public init() {}

  public func setConstantValue(_ value: UnsafeRawPointer, type: MTLDataType, index: Int) {
    values[index] = type
    let size =
      switch type {
      case .bool, .char, .uchar: 1
      case .half, .short, .ushort, .bfloat: 2
      case .float, .int, .uint: 4
      }
    bytes[index] = Array(UnsafeRawBufferPointer(start: value, count: size))
  }
}

public final class MTLComputePipelineDescriptor: NSObject, @unchecked Sendable {
  public var computeFunction: MTLFunction?
  public var maxTotalThreadsPerThreadgroup = 0
  public var label: String?

  override public init() {}
}

public final class MTLComputePipelineReflection: NSObject, @unchecked Sendable {}

public protocol MTLFunction: AnyObject, Sendable {
  var name: String { get }
}

public protocol MTLLibrary: AnyObject, Sendable {
  var functionNames: [String] { get }
  func makeFunction(name: String) -> MTLFunction?
  func makeFunction(name: String, constantValues: MTLFunctionConstantValues) throws -> MTLFunction
}

public protocol MTLComputePipelineState: AnyObject, Sendable {
  var maxTotalThreadsPerThreadgroup: Int { get }
  var threadExecutionWidth: Int { get }
}

public protocol MTLBuffer: AnyObject, Sendable {
  var length: Int { get }
  func contents() -> UnsafeMutableRawPointer
  func didModifyRange(_ range: Range<Int>)
}

public protocol MTLComputeCommandEncoder: AnyObject {
  func setComputePipelineState(_ state: MTLComputePipelineState)
  func setBuffer(_ buffer: MTLBuffer?, offset: Int, index: Int)
  func setBytes(_ bytes: UnsafeRawPointer, length: Int, index: Int)
  func setThreadgroupMemoryLength(_ length: Int, index: Int)
  func dispatchThreadgroups(_ groups: MTLSize, threadsPerThreadgroup: MTLSize)
  func dispatchThreads(_ threads: MTLSize, threadsPerThreadgroup: MTLSize)
  func endEncoding()
}

public protocol MTLCommandBuffer: AnyObject {
  var error: Error? { get }
  var gpuStartTime: Double { get }
  var gpuEndTime: Double { get }
  func makeComputeCommandEncoder() -> MTLComputeCommandEncoder?
  func commit()
  func waitUntilCompleted()
}

public protocol MTLCommandQueue: AnyObject, Sendable {
  func makeCommandBuffer() -> MTLCommandBuffer?
}

public protocol MTLDevice: AnyObject, Sendable {
  var name: String { get }
  var registryID: UInt64 { get }
  var maxThreadgroupMemoryLength: Int { get }
  func supportsFamily(_ family: MTLGPUFamily) -> Bool
  func makeCommandQueue() -> MTLCommandQueue?
  func makeBuffer(length: Int, options: MTLResourceOptions) -> MTLBuffer?
  func makeBuffer(bytes: UnsafeRawPointer, length: Int, options: MTLResourceOptions) -> MTLBuffer?
  func makeBuffer(
    bytesNoCopy: UnsafeMutableRawPointer, length: Int, options: MTLResourceOptions,
    deallocator: ((UnsafeMutableRawPointer, Int) -> Void)?
  ) -> MTLBuffer?
  func makeDefaultLibrary(bundle: Bundle) throws -> MTLLibrary
  func makeDefaultLibrary() -> MTLLibrary?
  func makeLibrary(source: String, options: MTLCompileOptions?) throws -> MTLLibrary
  func makeLibrary(URL: URL) throws -> MTLLibrary
  func makeComputePipelineState(function: MTLFunction) throws -> MTLComputePipelineState
  func makeComputePipelineState(
    descriptor: MTLComputePipelineDescriptor, options: MTLPipelineOption,
    reflection: AutoreleasingUnsafeMutablePointer<MTLComputePipelineReflection?>?
  ) throws -> MTLComputePipelineState
}

extension MTLDevice {
  public func makeBuffer(length: Int) -> MTLBuffer? {
    makeBuffer(length: length, options: [])
  }

  public func makeBuffer(bytes: UnsafeRawPointer, length: Int) -> MTLBuffer? {
    makeBuffer(bytes: bytes, length: length, options: [])
  }
}

/// Apple's own type of that name exists only with the Objective-C run time.
public typealias AutoreleasingUnsafeMutablePointer<T> = UnsafeMutablePointer<T>

public func MTLCreateSystemDefaultDevice() -> MTLDevice? {
  StandinDevice.shared
}
