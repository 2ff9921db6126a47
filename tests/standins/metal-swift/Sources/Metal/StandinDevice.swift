// A device that keeps the sources that it is given and rejects what the real compiler is known to
// reject; it executes them where SoftwareMetal.swift is given a compiler. What it does is set by its
// properties, at first from the environment:
//   METAL_STANDIN_FAMILY   Apple GPU family, 7 to 10 (default 9)
//   METAL_STANDIN_REJECT   "asm": sources with inline assembly, as macOS 26; "pipeline": pipelines
//                          of such sources; "all": every source
//   METAL_STANDIN_RECORD   folder that receives every accepted source as <number>.metal

import Foundation

public struct StandinError: Error, CustomStringConvertible {
  public let description: String
}

public final class StandinDevice: MTLDevice, @unchecked Sendable {
  public static let shared = StandinDevice()
  public static let libraryMagic = Data("standin metallib\n".utf8)
  /// That of the stand-in xcrun, too.
  private static let magics = [libraryMagic, Data("MTLB".utf8)]

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
    let language = (options ?? MTLCompileOptions()).languageVersion
    if language.rawValue < MTLLanguageVersion.version3_1.rawValue,
      active.contains(where: { $0.contains("bfloat") })
    {
      throw StandinError(description: "program_source:1:1: error: unknown type name 'bfloat'")
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
    return try StandinLibrary(active: active, source: source)
  }

  public func makeLibrary(URL url: URL) throws -> MTLLibrary {
    let content = try Data(contentsOf: url)
    // What stands for a compiled library carries its source.
    guard let magic = Self.magics.first(where: content.starts(with:)) else {
      throw StandinError(description: "Invalid library file")
    }
    lock.lock()
    defer { lock.unlock() }
    loaded.append(url)
    let source = String(decoding: content.dropFirst(magic.count), as: UTF8.self)
    return try StandinLibrary(active: StandinPreprocessor.active(source), source: source)
  }

  public func makeComputePipelineState(function: MTLFunction) throws -> MTLComputePipelineState {
    guard let function = function as? StandinFunction else {
      throw StandinError(description: "a function of another device")
    }
    if reject == "pipeline", function.library.hasAssembly {
      throw StandinError(description: "undefined symbol air.simdgroup_async_copy_2d")
    }
    try function.library.program?.require(function.constants)
    return StandinPipeline(function)
  }

  public func makeComputePipelineState(
    descriptor: MTLComputePipelineDescriptor, options _: MTLPipelineOption,
    reflection _: UnsafeMutablePointer<MTLComputePipelineReflection?>?
  ) throws -> MTLComputePipelineState {
    guard let function = descriptor.computeFunction else {
      throw StandinError(description: "a pipeline without a function")
    }
    return try makeComputePipelineState(function: function)
  }
}

final class StandinLibrary: MTLLibrary, @unchecked Sendable {
  let program: SoftwareProgram?
  let hasAssembly: Bool
  private let text: String

  init(active: [String], source: String) throws {
    text = active.joined(separator: "\n")
    hasAssembly = text.contains("__asm")
    program = try SoftwareProgram(source: source)
  }

  var functionNames: [String] { [] }

  func makeFunction(name: String) -> MTLFunction? {
    make(name, constants: [:])
  }

  func makeFunction(name: String, constantValues: MTLFunctionConstantValues) throws
    -> MTLFunction
  {
    guard let function = make(name, constants: constantValues.bytes) else {
      throw StandinError(description: "no function \(name) in the library")
    }
    return function
  }

  private func make(_ name: String, constants: [Int: [UInt8]]) -> MTLFunction? {
    guard program?.has(name) ?? text.contains(name) else { return nil }
    return StandinFunction(name: name, library: self, constants: constants)
  }
}

final class StandinFunction: MTLFunction, @unchecked Sendable {
  let name: String
  let library: StandinLibrary
  let constants: [Int: [UInt8]]

  init(name: String, library: StandinLibrary, constants: [Int: [UInt8]]) {
    (self.name, self.library, self.constants) = (name, library, constants)
  }
}

final class StandinPipeline: MTLComputePipelineState, @unchecked Sendable {
  let function: StandinFunction

  init(_ function: StandinFunction) {
    self.function = function
  }

  var maxTotalThreadsPerThreadgroup: Int { 1024 }
  var threadExecutionWidth: Int { 32 }

  func run(_ grid: SoftwareGrid) {
    function.library.program?.run(function.name, constants: function.constants, grid: grid)
  }
}

final class StandinBuffer: MTLBuffer, @unchecked Sendable {
  let length: Int
  private let pointer: UnsafeMutableRawPointer
  private let release: (UnsafeMutableRawPointer) -> Void

  init(length: Int) {
    self.length = length
    pointer = .allocate(byteCount: max(length, 1), alignment: 16384)
    // As Metal documents.
    memset(pointer, 0, length)
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

  /// Whether what it borrows was taken back (`standin_buffer_release`).
  var isReleased = false

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

/// Command buffers that hold work which is not done. Upstream keeps one memory for masks and locks
/// nothing, so that a correct caller has one of them at a time.
private enum UnderWay {
  private static let lock = NSLock()
  nonisolated(unsafe) private static var count = 0

  static func begin() {
    let found = lock.withLock {
      count += 1
      return count
    }
    if found > 1 { StandinMisuse.record("two calls of the library were under way") }
  }

  static func end() {
    lock.withLock { count -= 1 }
  }
}

public final class StandinCommandBuffer: MTLCommandBuffer {
  /// As `MTLCommandBufferStatus` has them.
  public enum Status: Int32 {
    case notEnqueued = 0
    case scheduled = 3
    case completed = 4
  }

  public internal(set) var dispatches: [MTLSize] = []
  public internal(set) var encoders = 0
  public private(set) var status = Status.notEnqueued
  public var committed: Bool { status != .notEnqueued }
  public var error: Error? { nil }
  public var gpuStartTime: Double { 0 }
  public var gpuEndTime: Double { 0 }
  var work: [(pipeline: StandinPipeline, grid: SoftwareGrid)] = []

  public init() {}

  deinit {
    if status == .scheduled {
      StandinMisuse.record("a committed command buffer was never waited for")
    }
    if encoders > 0 && status != .completed { UnderWay.end() }
  }

  public func makeComputeCommandEncoder() -> MTLComputeCommandEncoder? {
    if committed { StandinMisuse.record("encoding into a committed command buffer") }
    if encoders == 0 { UnderWay.begin() }
    encoders += 1
    return StandinEncoder(self)
  }

  public func commit() {
    if committed { StandinMisuse.record("a command buffer was committed twice") }
    if dispatches.isEmpty { StandinMisuse.record("an empty command buffer was committed") }
    status = .scheduled
  }

  /// The work is done here, as late as it may be: who reads a result before has the old one.
  public func waitUntilCompleted() {
    guard status == .scheduled else {
      if status == .notEnqueued {
        StandinMisuse.record("waiting for a command buffer that was not committed")
      }
      return
    }
    for item in work {
      if item.grid.buffers.contains(where: { ($0 as? StandinBuffer)?.isReleased ?? false }) {
        StandinMisuse.record("a buffer was released while the GPU used it")
      }
      item.pipeline.run(item.grid)
    }
    work = []
    if encoders > 0 { UnderWay.end() }
    status = .completed
  }
}

final class StandinEncoder: MTLComputeCommandEncoder {
  private let buffer: StandinCommandBuffer
  private var ended = false
  private var pipeline: StandinPipeline?
  private var grid = SoftwareGrid()

  init(_ buffer: StandinCommandBuffer) {
    self.buffer = buffer
  }

  deinit {
    // As Metal does: not an error code, the end of the process.
    if !ended { fatalError("Command encoder released without endEncoding") }
  }

  func setComputePipelineState(_ state: MTLComputePipelineState) {
    pipeline = state as? StandinPipeline
  }

  func setBuffer(_ buffer: MTLBuffer?, offset: Int, index: Int) {
    grid.bound[index] = buffer.map { .buffer($0, offset: offset) }
  }

  func setBytes(_ bytes: UnsafeRawPointer, length: Int, index: Int) {
    grid.bound[index] = .bytes(Array(UnsafeRawBufferPointer(start: bytes, count: length)))
  }

  func setThreadgroupMemoryLength(_ length: Int, index: Int) {
    if length % 16 != 0 { fatalError("threadgroup memory of \(length) bytes, no multiple of 16") }
    grid.threadgroupBytes[index] = length
    let total = grid.threadgroupBytes.values.reduce(0, +)
    if total > StandinDevice.shared.maxThreadgroupMemoryLength {
      fatalError("threadgroup memory of \(total) bytes")
    }
  }

  func dispatchThreadgroups(_ groups: MTLSize, threadsPerThreadgroup group: MTLSize) {
    buffer.dispatches.append(groups)
    dispatch(
      MTLSize(
        width: groups.width * group.width, height: groups.height * group.height,
        depth: groups.depth * group.depth),
      in: group)
  }

  func dispatchThreads(_ threads: MTLSize, threadsPerThreadgroup group: MTLSize) {
    buffer.dispatches.append(threads)
    dispatch(threads, in: group)
  }

  private func dispatch(_ threads: MTLSize, in group: MTLSize) {
    guard let pipeline else { fatalError("a dispatch without a pipeline") }
    (grid.threads, grid.group) = (threads, group)
    buffer.work.append((pipeline, grid))
  }

  func endEncoding() {
    ended = true
  }
}
