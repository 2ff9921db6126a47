// A device that compiles nothing: it keeps the sources that it is given and rejects what the real
// compiler is known to reject. What it does is set by its properties, at first from the environment:
//   METAL_STANDIN_FAMILY   Apple GPU family, 7 to 10 (default 9)
//   METAL_STANDIN_REJECT   "asm": sources with inline assembly, as macOS 26; "all": every source
//   METAL_STANDIN_RECORD   folder that receives every accepted source as <number>.metal

import Foundation

public struct StandinError: Error, CustomStringConvertible {
  public let description: String
}

public final class StandinDevice: MTLDevice, @unchecked Sendable {
  public static let shared = StandinDevice()
  public static let libraryMagic = Data("standin metallib\n".utf8)

  public var family: Int
  public var reject: String
  public var record: URL?
  public var failBuffers = false
  public private(set) var offered: [(source: String, options: MTLCompileOptions?)] = []
  public private(set) var accepted: [String] = []
  public private(set) var loaded: [URL] = []
  private let lock = NSLock()

  public init() {
    let environment = ProcessInfo.processInfo.environment
    family = Int(environment["METAL_STANDIN_FAMILY"] ?? "") ?? 9
    reject = environment["METAL_STANDIN_REJECT"] ?? ""
    record = environment["METAL_STANDIN_RECORD"].map { URL(fileURLWithPath: $0) }
  }

  public var name: String { "stand-in for an Apple\(family) GPU" }
  public var registryID: UInt64 { UInt64(UInt(bitPattern: ObjectIdentifier(self).hashValue)) }
  public var maxThreadgroupMemoryLength: Int { 32768 }

  public func supportsFamily(_ wanted: MTLGPUFamily) -> Bool {
    wanted.rawValue <= MTLGPUFamily.apple1.rawValue + family - 1
  }

  public func makeCommandQueue() -> MTLCommandQueue? {
    StandinQueue()
  }

  public func makeBuffer(length: Int, options _: MTLResourceOptions) -> MTLBuffer? {
    failBuffers ? nil : StandinBuffer(length: length)
  }

  public func makeBuffer(
    bytes: UnsafeRawPointer, length: Int, options: MTLResourceOptions
  ) -> MTLBuffer? {
    guard let buffer = makeBuffer(length: length, options: options) else { return nil }
    buffer.contents().copyMemory(from: bytes, byteCount: length)
    return buffer
  }

  public func makeBuffer(
    bytesNoCopy pointer: UnsafeMutableRawPointer, length: Int, options _: MTLResourceOptions,
    deallocator: ((UnsafeMutableRawPointer, Int) -> Void)?
  ) -> MTLBuffer? {
    failBuffers ? nil : StandinBuffer(borrowing: pointer, length: length, deallocator: deallocator)
  }

  public func makeDefaultLibrary(bundle _: Bundle) throws -> MTLLibrary {
    throw StandinError(description: "the stand-in has no default library")
  }

  public func makeDefaultLibrary() -> MTLLibrary? {
    nil
  }

  public func makeLibrary(source: String, options: MTLCompileOptions?) throws -> MTLLibrary {
    lock.lock()
    defer { lock.unlock() }
    offered.append((source, options))
    let active = StandinPreprocessor.active(source)
    if let line = active.first(where: { $0.hasPrefix("#include \"") }) {
      throw StandinError(description: "program_source: fatal error: file not found: \(line)")
    }
    if reject == "all" || (reject == "asm" && active.contains { $0.contains("__asm") }) {
      throw StandinError(
        description: "program_source:1:1: error: illegal string literal in 'asm'")
    }
    if let record {
      let file = record.appendingPathComponent("\(accepted.count).metal")
      try Data(source.utf8).write(to: file)
    }
    accepted.append(source)
    return StandinLibrary(text: active.joined(separator: "\n"))
  }

  public func makeLibrary(URL url: URL) throws -> MTLLibrary {
    let content = try Data(contentsOf: url)
    guard content.starts(with: Self.libraryMagic) else {
      throw StandinError(description: "Invalid library file")
    }
    lock.lock()
    defer { lock.unlock() }
    loaded.append(url)
    return StandinLibrary(text: String(decoding: content, as: UTF8.self))
  }

  public func makeComputePipelineState(function _: MTLFunction) throws -> MTLComputePipelineState {
    StandinPipeline()
  }

  public func makeComputePipelineState(
    descriptor _: MTLComputePipelineDescriptor, options _: MTLPipelineOption,
    reflection _: UnsafeMutablePointer<MTLComputePipelineReflection?>?
  ) throws -> MTLComputePipelineState {
    StandinPipeline()
  }
}

final class StandinLibrary: MTLLibrary, @unchecked Sendable {
  private let text: String

  init(text: String) {
    self.text = text
  }

  var functionNames: [String] { [] }

  func makeFunction(name: String) -> MTLFunction? {
    text.contains(name) ? StandinFunction(name: name) : nil
  }

  func makeFunction(name: String, constantValues _: MTLFunctionConstantValues) throws
    -> MTLFunction
  {
    guard let function = makeFunction(name: name) else {
      throw StandinError(description: "no function \(name) in the library")
    }
    return function
  }
}

final class StandinFunction: MTLFunction, @unchecked Sendable {
  let name: String

  init(name: String) {
    self.name = name
  }
}

final class StandinPipeline: MTLComputePipelineState, @unchecked Sendable {
  var maxTotalThreadsPerThreadgroup: Int { 1024 }
  var threadExecutionWidth: Int { 32 }
}

final class StandinBuffer: MTLBuffer, @unchecked Sendable {
  let length: Int
  private let pointer: UnsafeMutableRawPointer
  private let release: (UnsafeMutableRawPointer) -> Void

  init(length: Int) {
    self.length = length
    pointer = .allocate(byteCount: max(length, 1), alignment: 16384)
    release = { $0.deallocate() }
  }

  init(
    borrowing pointer: UnsafeMutableRawPointer, length: Int,
    deallocator: ((UnsafeMutableRawPointer, Int) -> Void)?
  ) {
    self.length = length
    self.pointer = pointer
    release = { deallocator?($0, length) }
  }

  deinit { release(pointer) }

  func contents() -> UnsafeMutableRawPointer {
    pointer
  }

  func didModifyRange(_: Range<Int>) {}
}

final class StandinQueue: MTLCommandQueue, @unchecked Sendable {
  func makeCommandBuffer() -> MTLCommandBuffer? {
    StandinCommandBuffer()
  }
}

public final class StandinCommandBuffer: MTLCommandBuffer {
  public internal(set) var dispatches: [MTLSize] = []
  public internal(set) var encoders = 0
  public private(set) var committed = false
  public var error: Error? { nil }
  public var gpuStartTime: Double { 0 }
  public var gpuEndTime: Double { 0 }

  public init() {}

  public func makeComputeCommandEncoder() -> MTLComputeCommandEncoder? {
    encoders += 1
    return StandinEncoder(self)
  }

  public func commit() {
    committed = true
  }

  public func waitUntilCompleted() {}
}

final class StandinEncoder: MTLComputeCommandEncoder {
  private let buffer: StandinCommandBuffer
  private var ended = false

  init(_ buffer: StandinCommandBuffer) {
    self.buffer = buffer
  }

  deinit {
    // As Metal does: not an error code, the end of the process.
    if !ended { fatalError("Command encoder released without endEncoding") }
  }

  func setComputePipelineState(_: MTLComputePipelineState) {}
  func setBuffer(_: MTLBuffer?, offset _: Int, index _: Int) {}
  func setBytes(_: UnsafeRawPointer, length _: Int, index _: Int) {}
  func setThreadgroupMemoryLength(_: Int, index _: Int) {}

  func dispatchThreadgroups(_ groups: MTLSize, threadsPerThreadgroup _: MTLSize) {
    buffer.dispatches.append(groups)
  }

  func dispatchThreads(_ threads: MTLSize, threadsPerThreadgroup _: MTLSize) {
    buffer.dispatches.append(threads)
  }

  func endEncoding() {
    ended = true
  }
}
